import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createProbe, decide } from './mode.ts';

describe('the decision', () => {
  const noDocker = 'there is no docker command';
  const notInstalled = 'mise could not install what is missing: tilt';
  const table: { asked?: string; docker?: string; missing?: string[]; mise?: boolean; says: RegExp }[] = [
    { says: /^cluster: cluster, because Docker and the tools are there \(MODE=local / },
    { asked: 'cluster', says: /^cluster: cluster, as MODE=cluster asks/ },
    { asked: 'local', says: /^local: local processes, as MODE=local asks \(MODE=cluster / },
    { docker: noDocker, says: new RegExp(`^local: .*because ${noDocker} \\(MODE=cluster `) },
    {
      asked: 'cluster',
      docker: noDocker,
      says: new RegExp(`^error: MODE=cluster .*${noDocker} \\(MODE=local `),
    },
    { missing: ['tilt'], mise: true, says: /^cluster: / },
    { missing: ['tilt'], mise: false, says: new RegExp(`^local: .*${notInstalled}`) },
    { asked: 'cluster', missing: ['tilt'], mise: false, says: new RegExp(`^error: .*${notInstalled}`) },
    { asked: 'kind', says: /^error: MODE must be cluster or local, not 'kind'$/ },
  ];

  test.for(table)('$asked, $docker, $missing, $mise', async ({ asked, docker, missing = [], mise, says }) => {
    let left = missing;
    const decision = decide(asked, {
      docker: () => Promise.resolve(docker),
      missing: () => Promise.resolve(left),
      install: async () => {
        if (mise) left = [];
      },
    });
    const said = await decision.then(
      ({ mode, line }) => `${mode}: ${line}`,
      (error: Error) => `error: ${error.message}`,
    );
    expect(said).toMatch(says);
    expect(said).not.toContain('\n');
  });

  test('MODE=local asks nobody', async () => {
    const decision = decide('local', { docker: refuse, missing: refuse, install: refuse });
    await expect(decision).resolves.toHaveProperty('mode', 'local');
  });
});

function answers(): Promise<undefined> {
  return Promise.resolve(undefined);
}

function refuse(): Promise<never> {
  return Promise.reject(new Error('asked'));
}

describe('the machine', () => {
  let folder: string;
  let env: NodeJS.ProcessEnv;

  beforeAll(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), 'payloop-mode-'));
    env = { PATH: [folder, '/usr/bin', '/bin'].join(path.delimiter), HOME: folder };
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  async function command(name: string, script: string): Promise<void> {
    await writeFile(path.join(folder, name), `#!/bin/sh\n${script}\n`);
    await chmod(path.join(folder, name), 0o755);
  }

  test('a Docker that never answers is not waited for', async () => {
    await command('docker', 'sleep 30; true');
    expect(await createProbe(env, 200).docker()).toMatch(/did not answer within 0\.2 s/);
  });

  test('a Docker that refuses is quoted', async () => {
    await command('docker', 'echo some warning >&2; echo Cannot connect >&2; exit 1');
    expect(await createProbe(env).docker()).toBe('Docker cannot be reached (Cannot connect)');
  });

  test('what mise installs is found on the PATH that the probe leaves', async () => {
    const tools = path.join(folder, 'tools');
    await mkdir(tools);
    const changed = { ...env, PATH: folder };
    const probe = createProbe(changed);
    await command('npm', 'echo no network >&2; exit 1');
    await expect(decide('cluster', { ...probe, docker: answers })).rejects.toThrow(
      /mise could not install what is missing: ctlptl, kind, kubectl, kustomize, tilt /,
    );

    const install = `for tool in ctlptl kind kubectl kustomize tilt; do : > ${tools}/$tool; /bin/chmod +x ${tools}/$tool; done`;
    await command(
      'npm',
      `case "$*" in *mise?install) ${install} ;; *bin-paths) echo mise WARN offline >&2; echo ${tools} ;; esac`,
    );
    expect(await decide('cluster', { ...probe, docker: answers })).toHaveProperty('mode', 'cluster');
    expect(changed.PATH?.split(path.delimiter)).toEqual([folder, tools]);
  });
});
