/**
 * Currencies whose minor unit is not a hundredth, with their digits after the decimal point: ISO 4217,
 * list one, column "minor unit".
 */
const exceptions: ReadonlyMap<string, number> = new Map([
  ...digits(0, 'BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF'),
  ...digits(3, 'BHD IQD JOD KWD LYD OMR TND'),
  ...digits(4, 'CLF UYW'),
]);

/** Digits after the decimal point of the currency that has most. */
const mostDigits = 4;
/** Less than this is nothing in every currency, in major units. */
export const leastAmount = 0.5 / 10 ** mostDigits;

/** A currency in the one case that it is kept in: of codes of three characters the letters a to z are upper case. */
export function toCurrency(text: string): string {
  return /^.{3}$/su.test(text) ? text.replaceAll(/[a-z]/g, (letter) => letter.toUpperCase()) : text;
}

function digits(count: number, currencies: string): [string, number][] {
  return currencies.split(' ').map((currency) => [currency, count]);
}

/** How many digits a currency has after the decimal point; 2 for one that ISO 4217 does not know. */
export function minorUnitDigits(currency: string): number {
  return exceptions.get(currency) ?? 2;
}

/**
 * An amount in whole minor units (cents), rounded half up (away from zero below it) on its decimal digits,
 * so that 1.005 EUR is 101 although the nearest double lies below it.
 * @param value a finite number of major units
 */
export function toMinorUnits(value: number, currency: string): bigint {
  // Most values have no more decimals than their currency: then the product is next to the whole number.
  const product = value * 10 ** minorUnitDigits(currency);
  const nearest = Math.round(product);
  if (Math.abs(product) < 1e12 && Math.abs(product - nearest) < 1e-3) return BigInt(nearest);
  return scale(value.toString(), minorUnitDigits(currency));
}

/** More digits, with a point among them, than every number of so many is kept by a double. */
const manyDigits = /\d[\d.]{15}/;
/** No amount of money is written longer; and what is costs time to compute with. */
const longestNumber = 100;

/** From here on a double may miss the last minor unit of what was written; below it keeps all four decimals. */
const large = 1e11;

/** Whether JSON.parse may have kept another number than was written. */
export function mayBeInexact(value: unknown): boolean {
  return typeof value === 'number' && Math.abs(value) >= large;
}

/**
 * Whether a number read from JSON is the one that was written, to the last minor unit of any currency:
 * 70368744177664.01 is not, as the nearest double reads 70368744177664.02.
 * @param source as it was written
 */
export function isExact(value: number, source: string): boolean {
  if (!manyDigits.test(source) || value === 0 || !Number.isFinite(value)) return true;
  return source.length <= longestNumber && scale(source, mostDigits) === scale(value.toString(), mostDigits);
}

/** A decimal times ten to the power of `decimals`, rounded half up, away from zero below it. */
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

/** The amount in major units as it is written in JSON: 1215 cents are 12.15. */
export function toMajorUnits(minor: number, currency: string): number {
  return minor / 10 ** minorUnitDigits(currency);
}
