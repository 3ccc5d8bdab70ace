import fc from 'fast-check';
import { expect, test } from 'vitest';
import { minorUnitDigits, toMajorUnits, toMinorUnits } from './money.ts';

test.each([
  [12.15, 'EUR', 1215n],
  [1.005, 'EUR', 101n],
  [1.004, 'EUR', 100n],
  [0.005, 'EUR', 1n],
  [-1.005, 'EUR', -101n],
  [1e-7, 'EUR', 0n],
  [12.5, 'JPY', 13n],
  [1.2345, 'KWD', 1235n],
  [1.5, 'shells', 150n],
  [3.4028234e38, 'CLF', 34028234n * 10n ** 35n],
])('%d %s are %d minor units', (value, currency, minor) => {
  expect(toMinorUnits(value, currency)).toBe(minor);
});

test.each(['EUR', 'JPY', 'KWD', 'CLF'])('every amount in %s survives being written and read', (currency) => {
  fc.assert(
    fc.property(fc.maxSafeInteger(), (minor) => {
      // A double cannot hold every amount of more than 15 significant digits.
      fc.pre(Math.abs(minor) < 1e15);
      expect(toMinorUnits(toMajorUnits(minor, currency), currency)).toBe(BigInt(minor));
    }),
  );
});

test('rounding changes a value by at most half a minor unit', () => {
  fc.assert(
    fc.property(
      fc.double({ min: -1e9, max: 1e9, noNaN: true }),
      fc.constantFrom('EUR', 'JPY', 'KWD'),
      (value, currency) => {
        const unit = 10 ** -minorUnitDigits(currency);
        const moved = Math.abs(toMajorUnits(Number(toMinorUnits(value, currency)), currency) - value);
        expect(moved).toBeLessThanOrEqual(unit / 2 + 1e-6);
      },
    ),
  );
});
