import fc from 'fast-check';
import { expect, test } from 'vitest';

// Imported by a URL, as TypeScript checks the page's files in a project of their own.
const { href } = new URL('./page/format.js', import.meta.url);
const { subtract }: { subtract: (from: string, amount: string) => string } = await import(href);

/** Formats minor units as the server does. */
const toDecimal = (minor: bigint, digits: number) => {
  const text = `${minor < 0n ? -minor : minor}`.padStart(digits + 1, '0');
  const whole = text.slice(0, text.length - digits);
  return `${minor < 0n ? '-' : ''}${whole}${digits > 0 ? `.${text.slice(-digits)}` : ''}`;
};

test('the page subtracts amounts exactly, also negative ones', () => {
  expect(subtract('-0.05', '-0.02')).toBe('-0.03');
  const minor = fc.bigInt({ min: -(10n ** 18n), max: 10n ** 18n });
  fc.assert(
    fc.property(minor, minor, fc.constantFrom(0, 2, 3, 4), (from, amount, digits) => {
      const difference = subtract(toDecimal(from, digits), toDecimal(amount, digits));
      expect(difference).toBe(toDecimal(from - amount, digits));
    }),
  );
});
