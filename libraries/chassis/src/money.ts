/**
 * The digits after the decimal point of each currency that does not have two. Source: ISO 4217, list one, column
 * "minor unit".
 */
const exceptions: ReadonlyMap<string, number> = new Map([
  ...withDigits(0, 'BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF'),
  ...withDigits(3, 'BHD IQD JOD KWD LYD OMR TND'),
  ...withDigits(4, 'CLF UYW'),
]);

/** The maximum number of digits after the decimal point, in any currency. */
const maxDigits = 4;
/** In major units. Any amount below this one rounds to zero in every currency. */
export const minAmount = 0.5 / 10 ** maxDigits;

/**
 * Returns a currency as it is stored. If it has three characters, converts the letters a to z among them to upper case.
 * Other texts stay as they are.
 */
export function toCurrency(text: string): string {
  return /^.{3}$/su.test(text) ? text.replaceAll(/[a-z]/g, (letter) => letter.toUpperCase()) : text;
}

function withDigits(count: number, currencies: string): [string, number][] {
  return currencies.split(' ').map((currency) => [currency, count]);
}

/** The number of digits after the decimal point in amounts of a currency; 2 for currencies that ISO 4217 lacks. */
export function minorUnitDigits(currency: string): number {
  return exceptions.get(currency) ?? 2;
}

/**
 * Converts an amount to whole minor units (cents). Rounds the decimal digits half away from zero: 1.005 EUR becomes
 * 101, although its nearest double lies below it.
 * @param value a finite number of major units
 */
export function toMinorUnits(value: number, currency: string): bigint {
  // Most values have no more decimals than their currency. Then the product is within 1e-3 of a whole number: below
  // 1e12, that is more than the error of doubles. Near a half, only the decimal digits tell the direction: `scale`
  // reads them, but is slower.
  const product = value * 10 ** minorUnitDigits(currency);
  const nearest = Math.round(product);
  if (Math.abs(product) < 1e12 && Math.abs(product - nearest) < 1e-3) return BigInt(nearest);
  return scale(value.toString(), minorUnitDigits(currency));
}

/**
 * Matches every number of more than 15 digits: a double keeps all numbers of up to 15 digits. Also matches some shorter
 * numbers, because the point counts as a digit.
 */
const manyDigits = /\d[\d.]{15}/;
/** The maximum length of a number, in characters. No amount of money is longer, and longer ones are slow to compute. */
const maxNumberLength = 100;

/** In major units. A double keeps four decimals of every smaller amount; of a larger one it may change the last. */
const inexactFrom = 1e11;

/** Whether a value is a number so large that JSON.parse may have changed one of its first four decimals. */
export function mayBeInexact(value: unknown): boolean {
  return typeof value === 'number' && Math.abs(value) >= inexactFrom;
}

/**
 * Whether a number parsed from JSON and the number as written are equal when both are rounded to four decimals.
 * 70368744177664.01 is not exact: its nearest double is 70368744177664.02. Always true for 0 and infinity. Numbers of
 * more than `maxNumberLength` characters are not compared and count as inexact.
 * @param source the number as written
 */
export function isExact(value: number, source: string): boolean {
  if (!manyDigits.test(source) || value === 0 || !Number.isFinite(value)) return true;
  return source.length <= maxNumberLength && scale(source, maxDigits) === scale(value.toString(), maxDigits);
}

/**
 * Multiplies a number by ten to the power of `digits`, and rounds the product half away from zero.
 * @param text the number in decimal notation, as in JSON
 */
function scale(text: string, digits: number): bigint {
  const [mantissa = '', exponent = '0'] = text.replace(/^-/, '').toLowerCase().split('e');
  const isNegative = text.startsWith('-');
  const [whole = '', fraction = ''] = mantissa.split('.');
  // The product is the digits `whole`+`fraction`, times ten to the power of `shift`.
  const shift = Number(exponent) - fraction.length + digits;
  const unscaled = BigInt(whole + fraction);
  const scaled = shift >= 0 ? unscaled * 10n ** BigInt(shift) : divideHalfUp(unscaled, 10n ** BigInt(-shift));
  return isNegative ? -scaled : scaled;
}

function divideHalfUp(dividend: bigint, divisor: bigint): bigint {
  return (2n * dividend + divisor) / (2n * divisor);
}

/** Converts minor units to major units, as written in JSON: 1215 cents are 12.15. */
export function toMajorUnits(minor: number, currency: string): number {
  return minor / 10 ** minorUnitDigits(currency);
}
