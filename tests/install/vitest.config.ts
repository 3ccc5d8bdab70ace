import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['tests/install/*.test.ts'],
    // A first start takes half a minute, and two run at the same time.
    maxConcurrency: 2,
    testTimeout: 180_000,
    hookTimeout: 120_000,
    reporters: ['verbose'],
  },
});
