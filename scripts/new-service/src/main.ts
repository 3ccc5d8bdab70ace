import { run } from '@payloop/chassis/run.ts';

void run('new-service', () => import('./service.ts'));
