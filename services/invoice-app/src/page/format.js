/** @import { State } from '../overview.ts' */

const whole = new Intl.NumberFormat();
const time = new Intl.DateTimeFormat(undefined, { timeStyle: 'medium' });
const dayAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });

/** How each state is called. @type {Record<State, string>} */
export const stateNames = {
  paid: 'Paid',
  declined: 'Declined',
  refused: 'Refused',
  paying: 'Being paid',
  unknown: 'Outcome unknown',
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
 * An amount as the reader writes it, with just the digits that it came with.
 * @param {string} amount a decimal, in major units
 * @param {string} currency
 */
export function formatAmount(amount, currency) {
  const digits = amount.split('.')[1]?.length ?? 0;
  const key = `${currency} ${digits}`;
  let format = money.get(key);
  if (!format) {
    const fraction = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    // Whatever is no code of three letters has no symbol either: the column beside it has its name.
    const isCode = /^[a-z]{3}$/i.test(currency);
    format = new Intl.NumberFormat(
      undefined,
      isCode ? { style: 'currency', currency, currencyDisplay: 'narrowSymbol', ...fraction } : fraction,
    );
    money.set(key, format);
  }
  // A decimal as text is exact, which a sum over a million invoices as a number need not be.
  return format.format(/** @type {Intl.StringNumericLiteral} */ (amount));
}

/** The time of today, or day and time. @param {Date} date */
export function formatTime(date) {
  const today = new Date().toDateString() === date.toDateString();
  return (today ? time : dayAndTime).format(date);
}
