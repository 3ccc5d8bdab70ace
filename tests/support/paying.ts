/** The services that take part in a payment. `/version` of the first reports the source hash of both. */
export const paying = ['invoice-app', 'payment-provider'] as const;
