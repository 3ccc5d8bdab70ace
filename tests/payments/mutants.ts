/** A guard that is taken out of the code, and the test files of which each must notice. */
export interface Mutant {
  name: string;
  /** What is replaced, by file; each text must be there exactly once. */
  changes: [file: string, from: string, to: string][];
  tests: string[];
}

const app = 'services/invoice-app/src';
const provider = 'services/payment-provider/src';
const chassis = 'libraries/chassis';
const model = 'tests/payments/model.test.ts';
const auth = `${provider}/auth.test.ts`;
const checks = '{ algorithms, audience, issuer, clockTolerance,';

export const mutants: Mutant[] = [
  {
    name: 'no unique key: a charge is stored as often as it is asked for',
    changes: [
      [`${provider}/charges.ts`, 'CREATE UNIQUE INDEX', 'CREATE INDEX'],
      [`${provider}/charges.ts`, 'ON CONFLICT (idempotency_key) DO NOTHING', ''],
    ],
    tests: [`${provider}/cashier.test.ts`, model],
  },
  {
    name: 'no SKIP LOCKED: a claim waits for rows that others hold',
    changes: [[`${app}/batches.ts`, 'FOR UPDATE SKIP LOCKED', 'FOR UPDATE']],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'no stored key: a new one for each request',
    changes: [
      [`${app}/provider.ts`, 'idempotencyKey: attempt.key', 'idempotencyKey: crypto.randomUUID()'],
      [`${app}/provider.ts`, `'Idempotency-Key': attempt.key`, `'Idempotency-Key': crypto.randomUUID()`],
    ],
    tests: [`${app}/payments.test.ts`, model],
  },
  {
    name: 'no lease check: a batch is claimed whoever holds it',
    changes: [[`${app}/batches.ts`, 'AND (holder IS NULL OR NOT (${isLive}))', '']],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'no 422: a key is answered whatever it is used for',
    changes: [
      [`${provider}/ledger.ts`, `if (!isSame(charge, original)) return { outcome: 'mismatch' };`, ''],
    ],
    tests: [`${provider}/cashier.test.ts`],
  },
  {
    name: 'no 409: a key is taken although it is at work',
    changes: [
      [
        `${provider}/cashier.ts`,
        `if (key !== undefined && this.#busy.has(key)) return { outcome: 'busy' };`,
        '',
      ],
    ],
    tests: [`${provider}/cashier.test.ts`],
  },
  {
    name: 'no compare-and-set: an answer is recorded whatever was recorded before',
    changes: [
      [
        `${app}/batches.ts`,
        'WHERE invoices.id = answers.id AND attempt_key = key AND paid_at IS NULL\n         AND',
        'WHERE invoices.id = answers.id\n         AND',
      ],
    ],
    tests: [`${app}/payments.test.ts`, model],
  },
  {
    name: 'no compare-and-set of the key: an answer ends whichever attempt is open',
    changes: [
      [
        `${app}/batches.ts`,
        'WHERE invoices.id = answers.id AND attempt_key = key AND paid_at IS NULL\n         AND',
        'WHERE invoices.id = answers.id AND paid_at IS NULL\n         AND',
      ],
    ],
    tests: [model],
  },
  {
    name: 'no new key after a decline: the invoice is declined for ever',
    changes: [[`${app}/batches.ts`, 'ELSE uuidv7() END', 'ELSE key END']],
    tests: [`${app}/payments.test.ts`, model],
  },
  {
    name: 'no trigger: the history can be changed',
    changes: [[`${app}/invoices.ts`, 'BEFORE UPDATE OR DELETE OR TRUNCATE', 'BEFORE TRUNCATE']],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'no recovery: leases that ran out are nobody’s',
    changes: [[`${app}/service.ts`, 'payments.startRecovery();', '']],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'no lease after an unknown outcome: recovery does not know of it',
    changes: [
      [
        `${app}/payments.ts`,
        'batches.release(this.#options.database, batch, isUnknown)',
        'batches.release(this.#options.database, batch, false)',
      ],
    ],
    tests: [`${app}/payments.test.ts`, model],
  },
  {
    name: 'no refusals: an invoice that the provider refuses counts as unknown, and so as the provider down',
    changes: [[`${app}/provider.ts`, `return status === 400 || status === 422 ?`, 'return status === 0 ?']],
    tests: [`${app}/payments.test.ts`, model],
  },
  {
    name: 'refused invoices are asked for again before somebody has changed them',
    changes: [
      [
        `${app}/batches.ts`,
        'paid_at IS NULL AND refused_at IS NULL AND asked_at',
        'paid_at IS NULL AND asked_at',
      ],
    ],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'no reopening: a refused invoice stays refused when somebody changes it',
    changes: [
      [
        `${app}/invoices.ts`,
        'UPDATE invoices SET refused_at = NULL, refusal_reason = NULL WHERE id = NEW.id;',
        '',
      ],
    ],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'any unusable answer is a provider that is down',
    changes: [
      [
        `${app}/provider.ts`,
        'return status >= 500 || [401, 403, 429].includes(status);',
        'return status > 0;',
      ],
    ],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'no proof: a 402 without a reason is a decline',
    changes: [
      [
        `${app}/provider.ts`,
        `if (typeof error !== 'string') return unknown;`,
        `if (typeof error !== 'string') return status === 402 ? { outcome: 'declined' } : unknown;`,
      ],
    ],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'outcomes are matched by their place',
    changes: [
      [
        `${app}/provider.ts`,
        'return attempts.map((attempt) => {\n    const answer = byId.get(nameOf(attempt));',
        'return attempts.map((attempt, at) => {\n    const answer = (answers as ({ status?: unknown } | null)[])[at] ?? undefined;',
      ],
    ],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'no count: an array of fewer outcomes is taken',
    changes: [[`${app}/provider.ts`, ' || answers.length !== attempts.length', '']],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'a batch is paid twice in a run whose workers are slow to claim',
    changes: [
      [
        `${app}/payments.ts`,
        '!run.remaining.delete(batch.first)',
        'run.remaining.delete(batch.first) && false',
      ],
    ],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'no marks: a provider that ignores keys is asked again by whoever comes next',
    changes: [[`${app}/batches.ts`, 'refused_at IS NULL AND asked_at IS NULL', 'refused_at IS NULL']],
    tests: [`${app}/original.test.ts`, model],
  },
  {
    name: 'keys are taken for honoured where nobody says so',
    changes: [
      [`${app}/provider.ts`, `this.#keys = answer.headers[honoursKeys.toLowerCase()] === 'true';`, ''],
      [`${app}/provider.ts`, 'keys = false', 'keys = true'],
    ],
    tests: [`${app}/original.test.ts`],
  },
  {
    name: 'what is unknown at a provider without keys is not listed',
    changes: [[`${app}/payments.ts`, 'if (isListed || batch.leftOpen) {', 'if (isListed) {']],
    tests: [`${app}/original.test.ts`, model],
  },
  {
    name: 'what is unknown is not listed where the batch was claimed and given back since',
    changes: [
      [`${app}/payments.ts`, 'if (isListed || batch.leftOpen) {', 'if (isListed || batch.abandoned) {'],
    ],
    // The order that the model would need is rare: once in 5,900 runs.
    tests: [`${app}/original.test.ts`],
  },
  {
    name: 'no heartbeat: a lease runs out under a holder that is at work',
    changes: [[`${app}/payments.ts`, 'lease.keep();', '']],
    tests: [`${app}/original.test.ts`],
  },
  {
    name: 'a holder goes on asking when its lease is lost',
    changes: [
      [`${app}/lease.ts`, 'return !this.#isLost && ', 'return '],
      [
        `${app}/batches.ts`,
        'WHERE first_id = $3 AND holder = $4\n       RETURNING',
        'WHERE first_id = $3 OR holder = $4\n       RETURNING',
      ],
    ],
    tests: [`${app}/original.test.ts`],
  },
  {
    name: 'answers are stored only once a whole batch has been asked for',
    changes: [[`${app}/provider.ts`, 'const storeInterval = 1_000;', 'const storeInterval = 100_000;']],
    tests: [`${app}/original.test.ts`],
  },
  {
    name: 'answers of single payments are stored as they came',
    changes: [[`${app}/provider.ts`, '.toSorted((a, b) => a.id - b.id)', '.slice()']],
    tests: [`${app}/original.test.ts`],
  },
  {
    name: 'a batch is asked for to its end without marks where the provider stops honouring keys',
    changes: [[`${app}/provider.ts`, 'queue.length > 0 && this.#keys && ', 'queue.length > 0 && ']],
    tests: [`${app}/original.test.ts`],
  },
  {
    name: 'half of a character is taken for a key',
    changes: [
      [`${provider}/payment-request.ts`, String.raw`/^[^\0\ud800-\udfff]*$/u`, String.raw`/^[^\0]*$/`],
    ],
    tests: [`${provider}/edges.test.ts`],
  },
  {
    name: 'bytes that are no UTF-8 are replaced',
    changes: [[`${provider}/payment-request.ts`, 'fatal: true', 'fatal: false']],
    tests: [`${provider}/edges.test.ts`],
  },
  {
    name: 'known and not found is charged',
    changes: [
      [`${provider}/ledger.ts`, 'stored === undefined && isKnown.has(charge.key)', 'isKnown.size < 0'],
    ],
    tests: [`${provider}/edges.test.ts`],
  },
  {
    name: 'a prototype’s fields are the payment’s',
    changes: [[`${provider}/payment-request.ts`, 'Object.create(null)', '{}']],
    tests: [`${provider}/edges.test.ts`],
  },
  {
    name: 'a number that a double cannot hold is charged as another',
    changes: [
      [
        `${provider}/payment-request.ts`,
        'isNumber && !isExact(value, source) ? NaN : value',
        'isNumber && isExact(0, source) ? value : value',
      ],
    ],
    tests: [`${provider}/edges.test.ts`],
  },
  {
    name: 'what rounds to 0 is charged',
    changes: [[`${provider}/payment-request.ts`, 'if (minor === 0n) throw', 'if (minor === null) throw']],
    tests: [`${provider}/edges.test.ts`],
  },
  {
    name: 'a currency is another one in another case',
    changes: [['libraries/chassis/src/money.ts', '/^.{3}$/su.test(text)', 'text === null']],
    tests: [`${provider}/edges.test.ts`],
  },
  {
    name: 'no length: an id may be as long as a body',
    changes: [[`${provider}/payment-request.ts`, ".max(idLength, tooLong('payment id', idLength))", '']],
    tests: [`${provider}/edges.test.ts`],
  },
  {
    name: 'no bounds: an invoice may have an amount that is charged as another',
    changes: [
      [
        `${app}/invoices.ts`,
        'CHECK (amount BETWEEN -999999999999999 AND 999999999999999)',
        'CHECK (amount IS NOT NULL)',
      ],
    ],
    tests: [`${app}/service.test.ts`],
  },
  {
    name: 'a number that Postgres holds is read as another',
    changes: [
      [
        'libraries/chassis/src/database.ts',
        'if (Number.isSafeInteger(value)) return value;',
        'if (!Number.isNaN(value)) return value;',
      ],
    ],
    tests: ['libraries/chassis/src/database.test.ts'],
  },
  {
    name: 'no trigger: a paid invoice can be made unpaid',
    changes: [
      [
        `${app}/invoices.ts`,
        'WHEN (OLD.paid_at IS NOT NULL AND OLD.* IS DISTINCT FROM NEW.*)',
        'WHEN (false)',
      ],
    ],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'an invoice can change while it may be charged',
    changes: [
      [`${app}/invoices.ts`, 'IF lease IS NOT NULL OR OLD.asked_at IS NOT NULL THEN', 'IF false THEN'],
    ],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'a lease lasts as long as the clock went back',
    changes: [
      [
        `${app}/batches.ts`,
        "leased_until BETWEEN now() AND now() + interval '${2 * leaseSeconds} s'",
        'leased_until >= now()',
      ],
    ],
    tests: [`${app}/payments.test.ts`, model],
  },
  {
    name: 'a run waits for others without end',
    changes: [[`${app}/payments.ts`, 'if (performance.now() - gotAt > patience) return;', '']],
    tests: [`${app}/payments.test.ts`],
  },
  {
    name: 'a database that can only be read is ready',
    changes: [
      ['libraries/chassis/src/database.ts', `if (rows[0]?.setting !== 'off')`, 'if (rows.length === 0)'],
    ],
    tests: ['libraries/chassis/src/database.test.ts'],
  },
  {
    name: 'a read-only database is a fault of the service',
    changes: [['libraries/chassis/src/database.ts', '|55P03|25006)', '|55P03)']],
    tests: ['libraries/chassis/src/database.test.ts'],
  },
  {
    name: 'no epoch: a payment of data that were reset since is charged',
    changes: [
      [
        `${provider}/charges.ts`,
        'WHERE NOT EXISTS (SELECT FROM retired_epochs WHERE epoch = $6)',
        'WHERE $6::uuid IS NULL OR true',
      ],
    ],
    tests: [`${app}/reset.test.ts`],
  },
  {
    name: 'a reset that comes again forgets what was charged since',
    changes: [
      [
        `${provider}/service.ts`,
        'if (isNew) await deletePayments(query);',
        'if (isNew !== undefined) await deletePayments(query);',
      ],
    ],
    // The order that the model would need is too rare: none in 1,100 runs.
    tests: [`${app}/reset.test.ts`],
  },
  {
    name: 'a reset without an answer is taken for one that failed',
    changes: [
      [
        `${app}/reset.ts`,
        `answer.outcome === 'refused' && (!isPending || answer.isAbsent)`,
        `answer.outcome !== 'reset'`,
      ],
    ],
    tests: [`${app}/reset.test.ts`, model],
  },
  {
    name: 'batches are claimed while a reset is unfinished',
    changes: [[`${app}/batches.ts`, 'AND NOT EXISTS (SELECT FROM epoch WHERE resetting_at IS NOT NULL)', '']],
    tests: [`${app}/reset.test.ts`],
  },
  {
    name: 'a reset locks what it replaces one after the other',
    changes: [
      [
        `${app}/reset.ts`,
        'LOCK TABLE batches, invoices, customers, payment_events IN',
        'LOCK TABLE batches IN',
      ],
    ],
    tests: [`${app}/reset.test.ts`],
  },
  {
    name: 'nobody finishes a reset that was left',
    changes: [[`${app}/payments.ts`, 'await this.#options.resets?.finishAbandoned();', '']],
    tests: [`${app}/reset.test.ts`],
  },
  {
    name: 'no token is asked for',
    changes: [[`${provider}/service.ts`, 'app.use(requireToken(rules, log));', '']],
    tests: [auth],
  },
  ...['audience', 'issuer', 'algorithms'].map((claim) => ({
    name: `no check of a token’s ${claim}`,
    changes: [[`${provider}/auth.ts`, checks, checks.replace(`${claim}, `, '')]] satisfies Mutant['changes'],
    tests: [auth],
  })),
  {
    name: 'no end: a token without one is good for ever',
    changes: [[`${provider}/auth.ts`, `requiredClaims: ['exp', 'sub']`, `requiredClaims: ['sub']`]],
    tests: [auth],
  },
  {
    name: 'no subject: any service account may pay',
    changes: [
      [`${provider}/auth.ts`, `if (subjects.includes(payload.sub ?? '')) next();`, 'if (payload) next();'],
    ],
    tests: [auth],
  },
  {
    name: 'no pool of their own: payments wait behind readers',
    changes: [[`${app}/service.ts`, 'database.partition(connections.payments)', 'database']],
    tests: [`${app}/bulkheads.test.ts`],
  },
  {
    name: 'no limit on lists: each reader gets one',
    changes: [[`${chassis}/src/limit.ts`, 'inFlight >= max', 'inFlight < 0']],
    tests: [`${app}/bulkheads.test.ts`, `${chassis}/src/limit.test.ts`],
  },
  {
    name: 'no Origin: what says nothing of its site is taken for no browser',
    changes: [[`${chassis}/src/guard.ts`, 'if (origin === undefined) return false;', 'return false;']],
    tests: ['tests/contract/guard.test.ts'],
  },
  {
    name: 'no Host: any name is served in development',
    changes: [
      [`${chassis}/src/guard.ts`, `if (environment === 'prod') return () => true;`, 'return () => true;'],
    ],
    tests: ['tests/contract/guard.test.ts'],
  },
  {
    name: 'no owner: compiled code of another user runs',
    changes: [[`${chassis}/dev/compile-cache.ts`, '.find(isPrivate)', '.find(() => true)']],
    tests: [`${chassis}/dev/compile-cache.test.ts`],
  },
  {
    name: 'no word on AUTH in production: nobody is asked for a token',
    changes: [[`${provider}/auth.ts`, 'if (config.AUTH === undefined && where !== undefined)', 'if (false)']],
    tests: [auth],
  },
];
