import { integer, readConfig } from '@payloop/chassis/config.ts';
import { Database, type Migration } from '@payloop/chassis/database.ts';
import { crossOrigin } from '@payloop/chassis/guard.ts';
import { HttpError } from '@payloop/chassis/http-error.ts';
import { createLog } from '@payloop/chassis/log.ts';
import { Metrics } from '@payloop/chassis/metrics.ts';
import { databaseErrors, error, json } from '@payloop/chassis/openapi.ts';
import type { Self } from '@payloop/chassis/self.ts';
import { route, startServer, type Running } from '@payloop/chassis/server.ts';
import express, { type Handler } from 'express';
import { z } from 'zod';

const service = 'new-service';

/** A released migration never changes: append the next one. */
const migrations: Migration[] = [
  {
    name: '1-notes',
    sql: `
      CREATE TABLE notes (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        text text NOT NULL
      )`,
  },
];

/** The maximum number of notes in one response. */
const maxNotes = 100;

const newNote = z.object({ text: z.string().min(1).max(1_000) });
const note = () => z.object({ id: z.int(), text: z.string() }).meta({ id: 'Note' });
type Note = z.infer<ReturnType<typeof note>>;

/**
 * Starts the service.
 * @throws {ConfigError} when a variable or the port cannot be used
 */
export async function start(self: Self): Promise<Running> {
  const config = readConfig({ PORT: integer(0, 65_535) }, self.env);
  const log = createLog(service, config.LOG_LEVEL);
  const database = new Database({ service, url: config.databaseUrl, migrations, log });
  const metrics = new Metrics(database);

  const listNotes: Handler = async (_request, response) => {
    const { rows } = await database.query<Note>('SELECT id, text FROM notes ORDER BY id DESC LIMIT $1', [
      maxNotes,
    ]);
    response.json(rows);
  };

  const addNote: Handler = async (request, response) => {
    const { success, data } = newNote.safeParse(request.body);
    // Postgres stores every character except NUL.
    if (!success || data.text.includes('\0')) {
      throw new HttpError(400, 'the body must be JSON such as {"text":"Buy milk"}');
    }
    const { rows } = await database.query<Note>('INSERT INTO notes (text) VALUES ($1) RETURNING id, text', [
      data.text,
    ]);
    response.status(201).json(rows[0]);
  };

  return startServer({ service, self, config, database, metrics, log }, (app) => {
    route(app, '/notes', { get: listNotes, post: [express.json(), addNote] }, describeNotes);
  });
}

// For GET /openapi.json.

const describeNotes = () => ({
  get: {
    summary: `The last ${maxNotes} notes, newest first`,
    responses: { 200: json('The notes.', z.array(note())), ...databaseErrors() },
  },
  post: {
    summary: 'Adds a note',
    body: { description: 'The note.', required: true, content: { 'application/json': newNote } },
    responses: {
      201: json('The note, with its id.', note()),
      400: error('The body is not a valid note.'),
      413: error('The body is larger than 100 kB.'),
      415: error('The encoding of the body is unknown.'),
      ...crossOrigin(),
      ...databaseErrors(),
    },
  },
});
