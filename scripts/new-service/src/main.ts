import { run } from '@payloop/kit/run.ts';

void run('new-service', () => import('./service.ts'));
