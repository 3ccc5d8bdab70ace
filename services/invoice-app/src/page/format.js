/** @import { State } from '../overview.ts' */

const whole = new Intl.NumberFormat();
const time = new Intl.DateTimeFormat(undefined, { timeStyle: 'medium' });
const dayAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });

/** The labels of the states. @type {Record<State, string>} */
export const stateNames = {
  paid: 'Paid',
  declined: 'Declined',
  refused: 'Refused',
  paying: 'Being paid',
  unknown: 'Outcome unknown',
  unsettled: 'Outcome unknown',
  unpaid: 'Unpaid',
};

/** @param {number} count */
export function formatCount(count) {
  return whole.format(count);
}

/** `1 invoice`, `2 invoices`. @param {number} count */
export function formatInvoices(count) {
  return `${whole.format(count)} ${count === 1 ? 'invoice' : 'invoices'}`;
}

/** @type {Map<string, Intl.NumberFormat>} */
const money = new Map();

/**
 * Formats an amount for the reader's locale, with exactly the decimals that it has.
 * @param {string} amount a decimal, in major units
 * @param {string} currency
 */
export function formatAmount(amount, currency) {
  const digits = amount.split('.')[1]?.length ?? 0;
  const key = `${currency} ${digits}`;
  let format = money.get(key);
  if (!format) {
    const fraction = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    // A currency without a three-letter code has no symbol. The column beside it shows its name.
    const isCode = /^[a-z]{3}$/i.test(currency);
    format = new Intl.NumberFormat(
      undefined,
      isCode ? { style: 'currency', currency, currencyDisplay: 'narrowSymbol', ...fraction } : fraction,
    );
    money.set(key, format);
  }
  // Formats the decimal as text, as a number may lose digits in a sum over a million invoices.
  return format.format(/** @type {Intl.StringNumericLiteral} */ (amount));
}

/**
 * Subtracts two amounts of one currency, so with the same number of decimals.
 * @param {string} from @param {string} amount
 */
export function subtract(from, amount) {
  const digits = from.split('.')[1]?.length ?? 0;
  const minor = BigInt(from.replace('.', '')) - BigInt(amount.replace('.', ''));
  const text = `${minor < 0n ? -minor : minor}`.padStart(digits + 1, '0');
  const sign = minor < 0n ? '-' : '';
  return sign + (digits > 0 ? `${text.slice(0, -digits)}.${text.slice(-digits)}` : text);
}

/** Formats the time, with the date unless it is today. @param {Date} date */
export function formatTime(date) {
  const today = new Date().toDateString() === date.toDateString();
  return (today ? time : dayAndTime).format(date);
}
