import { run } from '@payloop/chassis/run.ts';

void run('invoice-app', () => import('./service.ts'));
