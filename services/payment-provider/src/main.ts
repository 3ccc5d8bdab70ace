import { run } from '@payloop/kit/run.ts';

void run('payment-provider', () => import('./service.ts'));
