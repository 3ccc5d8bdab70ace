import { expect, test } from 'vitest';
import { OverlayError, readOverlay } from './overlay.ts';

test('flaky is what its component sets, by service', () => {
  expect(readOverlay('flaky')).toEqual({
    'payment-provider': {
      FAILURE_RATE: expect.stringMatching(/^0\.\d+$/),
      FAULTS: expect.stringContaining('fail='),
      FAULT_SEED: expect.any(String),
    },
    'invoice-app': { SEED_INVOICES: expect.stringMatching(/^\d+$/) },
  });
});

test('dev sets nothing', () => {
  expect(readOverlay('dev')).toEqual({});
});

test.each(['prod', 'prod-local', 'nonsense', '', '../overlays/flaky'])(
  '%j is none, which is said in a line',
  (name) => {
    expect(() => readOverlay(name)).toThrow(
      new OverlayError(
        `OVERLAY=${name} is not for local processes, which can be dev or flaky: MODE=cluster has the others`,
      ),
    );
  },
);
