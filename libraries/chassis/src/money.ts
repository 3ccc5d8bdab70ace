/**
 * The digits after the decimal point of each currency that does not have two. Source: ISO 4217, list one, column
 * "minor unit".
 */
const exceptions: ReadonlyMap<string, number> = new Map([
  ...digits(0, 'BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF'),
  ...digits(3, 'BHD IQD JOD KWD LYD OMR TND'),
  ...digits(4, 'CLF UYW'),
]);

/** The maximum number of digits after the decimal point, in any currency. */
const maxDigits = 4;
/** A smaller amount rounds to zero in every currency; in major units. */
export const minAmount = 0.5 / 10 ** maxDigits;

/** Converts the letters a to z of a three-character code to upper case, as stored. Other texts stay as they are. */
export function toCurrency(text: string): string {
  return /^.{3}$/su.test(text) ? text.replaceAll(/[a-z]/g, (letter) => letter.toUpperCase()) : text;
}

function digits(count: number, currencies: string): [string, number][] {
  return currencies.split(' ').map((currency) => [currency, count]);
}

/** Digits after the decimal point of a currency; 2 if ISO 4217 does not list it. */
export function minorUnitDigits(currency: string): number {
  return exceptions.get(currency) ?? 2;
}

/**
 * Converts an amount to whole minor units (cents). Rounds the decimal digits half away from zero: 1.005 EUR becomes
 * 101, although its nearest double lies below it.
 * @param value a finite number of major units
 */
export function toMinorUnits(value: number, currency: string): bigint {
  // Most values have no more decimals than their currency. Their product is very close to a whole number.
  const product = value * 10 ** minorUnitDigits(currency);
  const nearest = Math.round(product);
  if (Math.abs(product) < 1e12 && Math.abs(product - nearest) < 1e-3) return BigInt(nearest);
  return scale(value.toString(), minorUnitDigits(currency));
}

/** At least 16 characters of digits and point. A double keeps every number of up to 15 digits. */
const manyDigits = /\d[\d.]{15}/;
/** The maximum length of a number, in characters. No amount of money is longer, and longer ones are slow to compute. */
const maxNumberLength = 100;

/** From here on, a double may change the last minor unit. Below, it keeps all four decimals. In major units. */
const large = 1e11;

/** Whether JSON.parse may have changed the number that was written. */
export function mayBeInexact(value: unknown): boolean {
  return typeof value === 'number' && Math.abs(value) >= large;
}

/**
 * Whether a number parsed from JSON equals the number written, to the last minor unit of any currency.
 * 70368744177664.01 does not: its nearest double is 70368744177664.02.
 * @param source the number as written
 */
export function isExact(value: number, source: string): boolean {
  if (!manyDigits.test(source) || value === 0 || !Number.isFinite(value)) return true;
  return source.length <= maxNumberLength && scale(source, maxDigits) === scale(value.toString(), maxDigits);
}

/** Multiplies a decimal by ten to the power of `decimals` and rounds it half away from zero. */
function scale(decimal: string, decimals: number): bigint {
  const [mantissa = '', exponent = '0'] = decimal.replace(/^-/, '').toLowerCase().split('e');
  const isNegative = decimal.startsWith('-');
  const [whole = '', fraction = ''] = mantissa.split('.');
  // The number is `whole`+`fraction` times ten to the power of `shift`.
  const shift = Number(exponent) - fraction.length + decimals;
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
