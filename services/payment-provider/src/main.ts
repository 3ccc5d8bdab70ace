import { run } from '@payloop/chassis/run.ts';

void run('payment-provider', () => import('./service.ts'));
