import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createProbe, decide } from './mode.ts';
import { isSuitable, type Unsuitable } from '../scripts/tools.ts';

describe('the decision', () => {
  const noDocker = 'there is no docker command';
  const tilt: Unsuitable = { tool: 'tilt', wanted: '0.37.6', found: undefined };
  const oldKind: Unsuitable = { tool: 'kind', wanted: '0.33.0', found: '0.32.0' };
  const notInstalled = 'mise could not install tilt 0.37.6';
  const table: {
    asked?: string;
    docker?: string;
    overlay?: string;
    unsuitable?: Unsuitable[];
    mise?: boolean;
    says: RegExp;
  }[] = [
    { says: /^cluster: cluster, because Docker and the tools are available \(MODE=local / },
    { asked: 'cluster', says: /^cluster: cluster, because MODE=cluster is set/ },
    { asked: 'local', says: /^local: local processes, because MODE=local is set \(MODE=cluster / },
    { docker: noDocker, says: new RegExp(`^local: .*because ${noDocker} \\(MODE=cluster `) },
    {
      asked: 'cluster',
      docker: noDocker,
      says: new RegExp(`^error: MODE=cluster .*${noDocker} \\(MODE=local `),
    },
    { unsuitable: [tilt], mise: true, says: /^cluster: / },
    { unsuitable: [tilt], mise: false, says: new RegExp(`^local: .*${notInstalled}`) },
    { asked: 'cluster', unsuitable: [tilt], mise: false, says: new RegExp(`^error: .*${notInstalled}`) },
    {
      unsuitable: [oldKind, tilt],
      mise: false,
      says: /^local: .* install kind 0\.33\.0 \(0\.32\.0 is on the PATH\), tilt 0\.37\.6 \(MODE=/,
    },
    {
      asked: 'cluster',
      overlay: 'prod',
      docker: noDocker,
      says: new RegExp(`^error: the overlay prod needs a cluster, but ${noDocker}$`),
    },
    {
      overlay: 'prod',
      unsuitable: [tilt],
      mise: false,
      says: new RegExp(`^error: the overlay prod needs a cluster, but ${notInstalled}$`),
    },
    { overlay: 'prod', says: /^cluster: cluster, because Docker/ },
    { asked: 'kind', says: /^error: MODE must be cluster or local, not 'kind'$/ },
  ];

  test.for(table)(
    '$asked, $overlay, $docker, $unsuitable, $mise',
    async ({ asked, overlay, docker, unsuitable = [], mise, says }) => {
      let left = unsuitable;
      const probe = {
        docker: () => Promise.resolve(docker),
        unsuitable: () => Promise.resolve(left),
        install: async () => {
          if (mise) left = [];
        },
      };
      const decision = decide(asked, probe, overlay);
      const said = await decision.then(
        ({ mode, line }) => `${mode}: ${line}`,
        (error: Error) => `error: ${error.message}`,
      );
      expect(said).toMatch(says);
      expect(said).not.toContain('\n');
    },
  );

  test('MODE=local runs no probe', async () => {
    const decision = decide('local', { docker: refuse, unsuitable: refuse, install: refuse });
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

  test('gives up on a Docker that never answers', async () => {
    await command('docker', 'sleep 30; true');
    expect(await createProbe(env, 200).docker()).toMatch(/did not answer within 0\.2 s/);
  });

  test('quotes the error of a Docker that cannot be reached', async () => {
    await command('docker', 'echo some warning >&2; echo Cannot connect >&2; exit 1');
    expect(await createProbe(env).docker()).toBe('Docker cannot be reached (Cannot connect)');
  });

  const engine = (name: string) => JSON.stringify({ Client: {}, Server: { Components: [{ Name: name }] } });
  const remote = 'Docker is on another machine';
  test.for([
    ['Docker', 'unix:///var/run/docker.sock', engine('Engine'), /^undefined$/],
    ['Docker on loopback', 'tcp://127.0.0.1:2375', engine('Engine'), /^undefined$/],
    [
      "podman's own command",
      '',
      '{"Client":{}}',
      /^the docker command is not Docker but podman version 4\.9\.3$/,
    ],
    [
      "podman's command with a line before the JSON",
      '',
      'Emulate Docker CLI\n{"Client":{}}',
      /but podman version 4\.9\.3$/,
    ],
    [
      "Docker's command with podman's server",
      'unix:///run/podman.sock',
      engine('Podman Engine'),
      /but Podman Engine$/,
    ],
    ['Docker behind ssh', 'ssh://me@far', engine('Engine'), new RegExp(`^${remote} \\(ssh://me@far\\), so`)],
    ['Docker elsewhere', 'tcp://10.0.0.7:2376', engine('Engine'), new RegExp(`^${remote} \\(tcp://10`)],
    [
      'a host that begins with localhost',
      'tcp://localhost.far:1',
      engine('Engine'),
      new RegExp(`^${remote}`),
    ],
    ['a command that prints nothing', 'unix:///x', '', /^the docker command is not Docker but podman/],
  ] as const)('recognizes %s', async ([, host, version, says]) => {
    await command(
      'docker',
      `case "$1" in
        context) ${host === '' ? 'echo no such command >&2; exit 125' : `echo '${host}'`} ;;
        version) printf '%s\\n' '${version.replaceAll('\n', "' '")}' ;;
        --version) echo podman version 4.9.3 ;;
      esac`,
    );
    expect(String(await createProbe(env).docker())).toMatch(says);
  });

  test('uses DOCKER_HOST if the docker command does not report the host', async () => {
    await command('docker', 'exit 1');
    expect(await createProbe({ ...env, DOCKER_HOST: 'ssh://far' }).docker()).toMatch(
      /another machine \(ssh:\/\/far/,
    );
  });

  const pins = { ctlptl: '0.9.3', kind: '0.33.0', kubectl: '1.36.4', kustomize: '5.8.1', tilt: '0.37.6' };

  /** Creates a command that prints a version as the tool does. */
  async function tool(inside: string, name: string, version: string): Promise<void> {
    await writeFile(path.join(inside, name), `#!/bin/sh\necho "${name} v${version} go1.26.8"\n`);
    await chmod(path.join(inside, name), 0o755);
  }

  test('installs missing and outdated tools with mise, and puts them first on the PATH', async () => {
    const tools = path.join(folder, 'tools');
    await mkdir(tools);
    await Promise.all(Object.entries(pins).map(([name, version]) => tool(folder, name, version)));
    await rm(path.join(folder, 'tilt'));
    await tool(folder, 'kind', '0.32.0');
    await command('kubectl', 'echo no version here');
    const changed = { ...env, PATH: [folder, '/bin'].join(path.delimiter) };
    const probe = createProbe(changed);
    await command('npm', 'echo no network >&2; exit 1');
    await expect(decide('cluster', { ...probe, docker: answers })).rejects.toThrow(
      'mise could not install kind 0.33.0 (0.32.0 is on the PATH), ' +
        'kubectl 1.36.4 (an unknown version is on the PATH), tilt 0.37.6 (MODE=',
    );

    await Promise.all(Object.entries(pins).map(([name, version]) => tool(tools, name, version)));
    await command('npm', `case "$*" in *bin-paths*) echo mise WARN offline >&2; echo ${tools} ;; esac`);
    expect(await decide('cluster', { ...probe, docker: answers })).toHaveProperty('mode', 'cluster');
    expect(changed.PATH.split(path.delimiter)).toEqual([tools, folder, '/bin']);
  });

  test.for([
    ['kind', '0.33.0', true],
    ['kind', '0.34.1', true],
    ['kind', '0.32.9', false],
    ['kind', '1.0.0', false],
    ['tilt', '0.37.5', false],
    ['kubectl', '1.35.0', true],
    ['kubectl', '1.37.9', true],
    ['kubectl', '1.34.9', false],
    ['kubectl', '1.38.0', false],
  ] as const)('%s %s is suitable: %s', ([name, version, suitable]) => {
    expect(isSuitable(name, version, pins[name])).toBe(suitable);
  });
});
