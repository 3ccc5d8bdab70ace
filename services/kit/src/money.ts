/**
 * Currencies whose minor unit is not a hundredth, with their digits after the decimal point: ISO 4217,
 * list one, column "minor unit".
 */
const exceptions: ReadonlyMap<string, number> = new Map([
  ...digits(0, 'BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF'),
  ...digits(3, 'BHD IQD JOD KWD LYD OMR TND'),
  ...digits(4, 'CLF UYW'),
]);

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
  const [mantissa = '', exponent = '0'] = Math.abs(value).toString().split('e');
  const [whole = '', fraction = ''] = mantissa.split('.');
  // The amount is `whole`+`fraction` times ten to the power of `shift`, in minor units.
  const shift = Number(exponent) - fraction.length + minorUnitDigits(currency);
  const scaled = BigInt(whole + fraction);
  const minor = shift >= 0 ? scaled * 10n ** BigInt(shift) : divideHalfUp(scaled, 10n ** BigInt(-shift));
  return value < 0 ? -minor : minor;
}

function divideHalfUp(dividend: bigint, divisor: bigint): bigint {
  return (2n * dividend + divisor) / (2n * divisor);
}

/** The amount in major units as it is written in JSON: 1215 cents are 12.15. */
export function toMajorUnits(minor: number, currency: string): number {
  return minor / 10 ** minorUnitDigits(currency);
}
