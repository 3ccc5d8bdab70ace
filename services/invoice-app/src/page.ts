import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { describe, integer, must } from '@payloop/chassis/config.ts';
import { HttpError } from '@payloop/chassis/http-error.ts';
import { limitRequests } from '@payloop/chassis/limit.ts';
import { databaseErrors, error, json, type Responses } from '@payloop/chassis/openapi.ts';
import { route } from '@payloop/chassis/server.ts';
import type { Express, Handler, Response } from 'express';
import { z } from 'zod';
import { filters, rowsBody, type Overview } from './overview.ts';
import { describeProgress, type Progress } from './progress.ts';

/** The page's files, beside this file or beside the bundle, where import.meta is empty. */
const folder = join(import.meta.dirname ?? __dirname, 'page');

/** Matches the files of the page, but not the type checker's file beside them. */
const fileName = /^[\w-]+\.(html|js|css|svg)$/;

/** The attribute in index.html that the server replaces if it allows a reset. */
const resetRefused = 'data-reset="refused"';

/**
 * Adds the page and the routes that it reads.
 * @param allowReset whether the page offers to reset the invoices
 */
export function addPage(app: Express, overview: Overview, progress: Progress, allowReset: boolean): void {
  const sendPage: Handler = (_request, response) =>
    sendFile('index.html', response, (html) =>
      allowReset ? html.replace(resetRefused, 'data-reset="allowed"') : html,
    );
  route(app, '/', { get: sendPage }, () => ({
    get: { summary: 'The page', responses: describeFile({ 'text/html': z.string() }) },
  }));
  const sendNamed: Handler = (request, response) => sendFile(String(request.params.file), response);
  route(app, '/page/:file', { get: sendNamed }, () => ({
    get: {
      summary: 'A file of the page',
      path: z.object({ file: z.string().regex(fileName) }),
      responses: {
        ...describeFile({
          'text/javascript': z.string(),
          'text/css': z.string(),
          'image/svg+xml': z.string(),
        }),
        400: error('The path cannot be decoded.'),
        404: error('No file has this name.'),
      },
    },
  }));
  const watch: Handler = (request, response) => progress.watch(request, response);
  route(app, '/progress', { get: watch }, describeProgress);
  const sendRows: Handler = async (request, response) => {
    const query = rowsQuery.safeParse(request.query);
    if (!query.success) throw new HttpError(400, describe(query.error));
    const { show, from, limit } = query.data;
    const rows = await overview.readRows(show, from, limit);
    response.set('Cache-Control', 'no-store').json(rows);
  };
  route(app, '/rows', { get: [limitRequests(maxRowRequests, 'pages of rows'), sendRows] }, () => ({
    get: {
      summary: 'Invoices as the page shows them, from any position in the list',
      query: rowsQuery,
      responses: {
        200: json(
          'The rows at these positions.',
          rowsBody(),
          z.object({ 'Cache-Control': z.literal('no-store') }),
        ),
        400: error('A parameter is invalid. The error names it and states its rule.'),
        ...databaseErrors(),
      },
    },
  }));
}

const describeFile = (content: Record<string, z.ZodType>): Responses => {
  const headers = z.object({ 'Cache-Control': z.literal('no-cache'), ETag: z.string() });
  return {
    200: { description: 'The file.', content, headers },
    304: { description: 'The file still has the ETag of If-None-Match.', headers },
  };
};

/** The maximum number of rows in one response. */
const maxRows = 1_000;
/** The maximum number of requests for rows in flight. They are short, so they have a limit apart from the lists. */
const maxRowRequests = 50;

/** The query parameters of `GET /rows`. */
const rowsQuery = z.object({
  show: z.enum(filters, must(`one of ${filters.join(', ')}`)).default('all'),
  from: integer(0, Number.MAX_SAFE_INTEGER).meta({ type: 'integer', minimum: 0 }).default(0),
  limit: integer(1, maxRows).meta({ type: 'integer', minimum: 1, maximum: maxRows }).default(100),
});

/** Sends a file. Reads it on each request, so that a save of the page needs no restart. */
async function sendFile(name: string, response: Response, change = (text: string) => text): Promise<void> {
  if (!fileName.test(name)) throw new HttpError(404, 'not found');
  const text = await readFile(join(folder, name), 'utf8').catch(() => {
    throw new HttpError(404, 'not found');
  });
  // As bytes: for text Express adds a charset, also for an image.
  const content = Buffer.from(change(text));
  const tag = `"${createHash('sha256').update(content).digest('base64url').slice(0, 22)}"`;
  response.type(extname(name)).set({ 'Cache-Control': 'no-cache', ETag: tag }).send(content);
}
