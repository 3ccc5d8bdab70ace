/** The services that a payment takes: `/version` of the first tells the code of both. */
export const paying = ['invoice-app', 'payment-provider'] as const;
