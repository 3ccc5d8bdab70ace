import { createServer, connect, type AddressInfo, type Server, type Socket } from 'node:net';
import { once } from 'node:events';
import { Client } from 'pg';
import { afterEach, beforeEach, expect, inject, test } from 'vitest';
import { createDatabase, type TestDatabase } from '../../../tests/support/database.ts';
import { Database, DatabaseUnavailable, type DatabaseOptions } from './database.ts';
import { createLog } from './log.ts';

const log = createLog('test', 'silent');
const migrations = [
  { name: '1', sql: 'CREATE TABLE things (id bigint PRIMARY KEY)' },
  { name: '2', sql: 'INSERT INTO things VALUES (1)' },
];

async function connectTo(url: string) {
  const client = new Client({ connectionString: url });
  await client.connect();
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() });
}

let empty: TestDatabase;
const open: Database[] = [];
beforeEach(async () => {
  empty = await createDatabase();
});
afterEach(async () => {
  await Promise.all(open.splice(0).map((database) => database.close()));
  await empty.drop();
});

function openDatabase(options: Partial<DatabaseOptions> = {}): Database {
  const database = new Database({ url: empty.url, migrations, log, service: 'test', ...options });
  open.push(database);
  return database;
}

function watchWarnings() {
  const warnings: unknown[] = [];
  const watched = log.child({});
  watched.warn = (_details: unknown, message?: string) => void warnings.push(message);
  return { log: watched, warnings };
}

test('replicas that start at the same time wait for each other and apply each migration once', async () => {
  const { log: watched, warnings } = watchWarnings();
  const replicas = Array.from({ length: 5 }, () => openDatabase({ log: watched }));
  expect(await Promise.all(replicas.map(({ opened }) => opened))).toEqual([true, true, true, true, true]);
  const { rows } = await replicas[0]!.query('SELECT id FROM things');
  expect(rows).toEqual([{ id: 1 }]);
  expect(warnings).toEqual([]);
});

test('a later version applies only the new migrations', async () => {
  await openDatabase({ migrations: migrations.slice(0, 1) }).opened;
  const later = openDatabase();
  await later.opened;
  expect((await later.query('SELECT id FROM things')).rows).toHaveLength(1);
});

test('a transaction is all or nothing', async () => {
  const database = openDatabase();
  await database.opened;
  const broken = database.transaction(async (query) => {
    await query('INSERT INTO things VALUES (2)');
    throw new Error('no further');
  });
  await expect(broken).rejects.toThrow('no further');
  expect((await database.query('SELECT id FROM things')).rows).toEqual([{ id: 1 }]);
});

test('an invalid statement does not count as an unavailable database', async () => {
  const database = openDatabase();
  await database.opened;
  await expect(database.query('SELECT nonsense')).rejects.not.toBeInstanceOf(DatabaseUnavailable);
});

test.each(['9007199254740993', '-9007199254740992', '9223372036854775807'])(
  'a bigint outside the range of safe integers is an error: %s',
  async (number) => {
    const database = openDatabase();
    await database.opened;
    await expect(database.query(`SELECT ${number}::bigint`)).rejects.toThrow(`${number} is outside`);
    expect((await database.query('SELECT 9007199254740991::bigint AS n')).rows).toEqual([
      { n: 9007199254740991 },
    ]);
  },
);

test.each(['ALTER DATABASE', 'ALTER ROLE'])('a read-only database is unavailable: %s', async (command) => {
  const database = openDatabase();
  await database.opened;
  const name = new URL(empty.url).pathname.slice(1);
  const admin = new Client({ connectionString: empty.url });
  await admin.connect();
  await admin.query(`${command} ${name} SET default_transaction_read_only = on`);
  await admin.query(
    'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()',
  );
  await expect.poll(() => database.check().then(String, String)).toContain('the database is read-only');
  await expect(database.query('INSERT INTO things VALUES (5)')).rejects.toBeInstanceOf(DatabaseUnavailable);
  await expect(database.transaction((query) => query('DELETE FROM things'))).rejects.toBeInstanceOf(
    DatabaseUnavailable,
  );
  // Reads still work. It is ready again when it is writable.
  expect((await database.query('SELECT id FROM things')).rows).toEqual([{ id: 1 }]);
  await admin.query('SET default_transaction_read_only = off');
  await admin.query(`${command} ${name} RESET default_transaction_read_only`);
  await admin.query(
    'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()',
  );
  await admin.end();
  await expect.poll(() => database.check().then(() => 'ready', String)).toBe('ready');
});

test('a database that accepts no connections is unavailable', async () => {
  const database = openDatabase();
  await database.opened;
  const name = new URL(empty.url).pathname.slice(1);
  await using admin = await connectTo(inject('postgresUrl'));
  await admin.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS false`);
  await admin.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [name]);
  // The first query may still find a session that the server has closed.
  for (let n = 0; n < 2; n += 1) {
    await expect(database.query('SELECT 1')).rejects.toBeInstanceOf(DatabaseUnavailable);
  }
  await admin.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS true`);
  await expect.poll(() => database.check().then(() => 'ready', String)).toBe('ready');
});

test('sessions that the server closes are replaced by new ones', async () => {
  const { log: watched, warnings } = watchWarnings();
  const database = openDatabase({ log: watched });
  await database.opened;
  // Opens two sessions, so that one is idle when the server closes both.
  await Promise.all([database.query('SELECT 1'), database.query('SELECT 1')]);
  const admin = new Client({ connectionString: empty.url });
  await admin.connect();
  try {
    const held = database.transaction(async (query) => {
      await admin.query(
        'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()',
      );
      await query('SELECT 1');
    });
    await expect(held).rejects.toBeInstanceOf(DatabaseUnavailable);
  } finally {
    await admin.end();
  }
  await expect.poll(() => warnings).toEqual(['an idle database connection broke']);
  await database.check();
});

/** A proxy in front of Postgres. To a client, `cut` looks as if the pod of Postgres were deleted. */
class Link {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #mute = false;
  readonly url: string;

  private constructor(server: Server, url: string) {
    this.#server = server;
    this.url = url;
  }

  static async to(url: string): Promise<Link> {
    const target = new URL(url);
    const server = createServer();
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const link = new Link(
      server,
      url.replace(target.host, `127.0.0.1:${(server.address() as AddressInfo).port}`),
    );
    server.on('connection', (socket) => {
      if (link.#mute) {
        link.#sockets.add(socket.on('error', () => {}));
        return;
      }
      const onward = connect(Number(target.port), target.hostname);
      for (const end of [socket, onward]) {
        link.#sockets.add(end);
        end.on('error', () => {}).on('close', () => link.#sockets.delete(end));
      }
      socket.pipe(onward).pipe(socket);
    });
    return link;
  }

  /** Stops forwarding data and leaves the connections open. */
  silence(): void {
    for (const socket of this.#sockets) socket.unpipe().pause();
  }

  /** Accepts new connections from now on and never responds. */
  ignoreNew(): void {
    this.#mute = true;
  }

  async cut(): Promise<void> {
    const closed = once(this.#server, 'close');
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  async mend(): Promise<void> {
    this.#server.listen(Number(new URL(this.url).port), '127.0.0.1');
    await once(this.#server, 'listening');
  }
}

test('a database unreachable at start is not ready, and becomes ready by itself', async () => {
  const link = await Link.to(empty.url);
  await link.cut();
  const database = openDatabase({ url: link.url });
  await new Promise((resolve) => setTimeout(resolve, 300));
  await expect(database.check()).rejects.toBeInstanceOf(DatabaseUnavailable);
  await link.mend();
  expect(await database.opened).toBe(true);
  await database.check();
  await database.close();
  open.pop();
  await link.cut();
});

test('a database lost later is unavailable at once, and recovers by itself', async () => {
  const link = await Link.to(empty.url);
  const database = openDatabase({ url: link.url });
  await database.opened;
  await link.cut();
  await expect(database.check()).rejects.toBeInstanceOf(DatabaseUnavailable);
  await link.mend();
  await database.check();
  await database.close();
  open.pop();
  await link.cut();
});

test('statements to a vanished server time out', { timeout: 20_000, tags: ['slow'] }, async () => {
  const link = await Link.to(empty.url);
  const database = openDatabase({ url: link.url });
  await database.opened;
  await database.check();
  link.silence();
  const start = performance.now();
  const query = database.query('SELECT 1').catch((error: unknown) => error);
  await expect(database.check()).rejects.toBeInstanceOf(DatabaseUnavailable);
  // A probe waits 2 s.
  expect(performance.now() - start).toBeLessThan(2_000);
  expect(await query).toMatchObject({ name: 'DatabaseUnavailable', message: 'database unavailable' });
  expect(performance.now() - start).toBeLessThan(11_000);
  await database.check();
  await database.close();
  open.pop();
  await link.cut();
});

/** Uses every connection of a database until the returned function is called. */
async function takeAll(database: Database, count: number): Promise<() => Promise<void>> {
  const released = Promise.withResolvers<void>();
  const taken = Array.from({ length: count }, () => Promise.withResolvers<void>());
  const held = taken.map(({ resolve }) =>
    database.transaction(async (query) => {
      await query('SELECT 1');
      resolve();
      await released.promise;
    }),
  );
  await Promise.all(taken.map(({ promise }) => promise));
  return async () => {
    released.resolve();
    await Promise.all(held);
  };
}

const busy = {
  name: 'DatabaseBusy',
  message: 'no database connection is free, try again later',
  status: 503,
};

test('statements fail as busy while every connection is in use; readiness and partitions do not wait', async () => {
  const database = openDatabase({ max: 2 });
  const partition = database.partition(1);
  await database.opened;
  const release = await takeAll(database, 2);
  const waiting = Promise.allSettled([database.query('SELECT 1'), database.transaction(async () => {})]);
  const start = performance.now();
  await Promise.all(Array.from({ length: 20 }, () => database.check()));
  expect((await partition.query('SELECT 1')).rowCount).toBe(1);
  expect(performance.now() - start).toBeLessThan(1_000);
  const reason = { ...busy, retryAfter: 1 };
  expect(await waiting).toMatchObject([{ reason }, { reason }]);
  expect(database.pool).toMatchObject({ max: 4, total: 4 });
  await release();
  await database.query('SELECT 1');
});

test('statements fail as busy when the server has no free connection', async () => {
  await using admin = await connectTo(inject('postgresUrl'));
  await admin.query(`ALTER ROLE ${new URL(empty.url).username} CONNECTION LIMIT 2`);
  const database = openDatabase();
  await database.opened;
  // The connection limit of a role has the same SQLSTATE as the server's.
  await expect(
    Promise.all(Array.from({ length: 3 }, () => database.query('SELECT pg_sleep(0.5)'))),
  ).rejects.toMatchObject(busy);
});

test(
  'statements that wait for a connection fail as unavailable, not busy, while Postgres is away',
  { timeout: 20_000 },
  async () => {
    const link = await Link.to(empty.url);
    const database = openDatabase({ url: link.url, max: 1 });
    await database.opened;
    await link.cut();
    await link.mend();
    link.ignoreNew();
    const failures = await Promise.allSettled([database.query('SELECT 1'), database.query('SELECT 1')]);
    expect(failures.map((failure) => (failure as PromiseRejectedResult).reason.name)).toEqual([
      'DatabaseUnavailable',
      'DatabaseUnavailable',
    ]);
    await database.close();
    open.pop();
    await link.cut();
  },
);

test('closing a database that was never reached does not wait', async () => {
  const database = new Database({ url: 'postgres://u:p@127.0.0.1:1/x', migrations, log, service: 'test' });
  await database.close();
  expect(await database.opened).toBe(false);
});
