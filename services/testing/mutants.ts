/** A guard that is taken out of the code, and the test files of which each must notice. */
export interface Mutant {
  name: string;
  /** What is replaced, by file; each text must be there exactly once. */
  changes: [file: string, from: string, to: string][];
  tests: string[];
}

const app = 'services/invoice-app/src';
const provider = 'services/payment-provider/src';
const kit = 'services/kit';
const model = 'services/testing/model.test.ts';
const auth = `${provider}/auth.test.ts`;
const checks = '{ algorithms, audience, issuer, clockTolerance,';

export const mutants: Mutant[] = [
  {
    name: 'no unique key: a charge is stored as often as it is asked for',
    changes: [
      [`${provider}/payments.ts`, 'CREATE UNIQUE INDEX', 'CREATE INDEX'],
      [`${provider}/payments.ts`, 'ON CONFLICT (idempotency_key) DO NOTHING', ''],
    ],
    tests: [`${provider}/cashier.test.ts`, model],
  },
  {
    name: 'no SKIP LOCKED: a claim waits for rows that others hold',
    changes: [[`${app}/batches.ts`, 'FOR UPDATE SKIP LOCKED', 'FOR UPDATE']],
    tests: [`${app}/pay.test.ts`],
  },
  {
    name: 'no stored key: a new one for each request',
    changes: [
      [`${app}/provider.ts`, 'idempotencyKey: attempt.key', 'idempotencyKey: crypto.randomUUID()'],
      [`${app}/provider.ts`, `'Idempotency-Key': attempt.key`, `'Idempotency-Key': crypto.randomUUID()`],
    ],
    tests: [`${app}/pay.test.ts`, model],
  },
  {
    name: 'no lease check: a batch is claimed whoever holds it',
    changes: [[`${app}/batches.ts`, 'AND (holder IS NULL OR leased_until < now())', '']],
    tests: [`${app}/pay.test.ts`],
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
        'WHERE invoices.id = answers.id AND attempt_key = key AND paid_at IS NULL',
        'WHERE invoices.id = answers.id',
      ],
    ],
    tests: [`${app}/pay.test.ts`, model],
  },
  {
    name: 'no compare-and-set of the key: an answer ends whichever attempt is open',
    changes: [
      [
        `${app}/batches.ts`,
        'WHERE invoices.id = answers.id AND attempt_key = key AND paid_at IS NULL',
        'WHERE invoices.id = answers.id AND paid_at IS NULL',
      ],
    ],
    tests: [model],
  },
  {
    name: 'no new key after a decline: the invoice is declined for ever',
    changes: [[`${app}/batches.ts`, 'ELSE uuidv7() END', 'ELSE key END']],
    tests: [`${app}/pay.test.ts`, model],
  },
  {
    name: 'no trigger: the history can be changed',
    changes: [[`${app}/invoices.ts`, 'BEFORE UPDATE OR DELETE OR TRUNCATE', 'BEFORE TRUNCATE']],
    tests: [`${app}/pay.test.ts`],
  },
  {
    name: 'no recovery: leases that ran out are nobody’s',
    changes: [[`${app}/service.ts`, 'payments.startRecovery();', '']],
    tests: [`${app}/pay.test.ts`],
  },
  {
    name: 'no lease after an unknown outcome: recovery does not know of it',
    changes: [
      [
        `${app}/pay.ts`,
        'batches.release(database, batch, unknown.length > 0)',
        'batches.release(database, batch, false)',
      ],
    ],
    tests: [`${app}/pay.test.ts`, model],
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
    changes: [[`${kit}/src/limit.ts`, 'underWay >= most', 'underWay < 0']],
    tests: [`${app}/bulkheads.test.ts`, `${kit}/src/limit.test.ts`],
  },
  {
    name: 'no Origin: what says nothing of its site is taken for no browser',
    changes: [[`${kit}/src/guard.ts`, 'if (origin === undefined) return false;', 'return false;']],
    tests: ['services/testing/guard.test.ts'],
  },
  {
    name: 'no Host: any name is served in development',
    changes: [
      [`${kit}/src/guard.ts`, `if (environment === 'prod') return () => true;`, 'return () => true;'],
    ],
    tests: ['services/testing/guard.test.ts'],
  },
  {
    name: 'no owner: compiled code of another user runs',
    changes: [[`${kit}/dev/compile-cache.ts`, '.find(isPrivate)', '.find(() => true)']],
    tests: [`${kit}/dev/compile-cache.test.ts`],
  },
  {
    name: 'no word on AUTH in production: nobody is asked for a token',
    changes: [[`${provider}/auth.ts`, 'if (config.AUTH === undefined && where !== undefined)', 'if (false)']],
    tests: [auth],
  },
];
