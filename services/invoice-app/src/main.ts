import { run } from '@payloop/kit/run.ts';

void run('invoice-app', () => import('./service.ts'));
