// Draws a strip for each way on one scale, with a dot for each save and a line for the median.
import { percentile } from './clock.ts';

export interface Strip {
  name: string;
  /** In milliseconds. */
  values: number[];
}

const left = 240;
const scale = 420;
const width = left + scale + 30;
const row = 30;

/** Returns an SVG for light and dark pages. */
export function draw(title: string, strips: Strip[]): string {
  const most = Math.max(...strips.flatMap(({ values }) => values.filter(Number.isFinite)));
  const unit = [50, 100, 200, 500, 1_000, 2_000, 5_000].find((step) => most / step <= 8) ?? 10_000;
  const end = Math.ceil(most / unit) * unit;
  const x = (ms: number) => (left + (ms / end) * scale).toFixed(1);
  const height = 60 + strips.length * row;
  const ticks = Array.from({ length: end / unit + 1 }, (_, index) => index * unit);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-label="${title}">
<style>
text{font:12px system-ui,sans-serif;fill:#1f2328}.dim{fill:#59636e}.end{text-anchor:end}.mid{text-anchor:middle}
line{stroke:#8c959f;stroke-opacity:.35}.dot{fill:#0969da;fill-opacity:.4}.p50{stroke:#1f2328;stroke-opacity:1;stroke-width:2}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#9198a1}.dot{fill:#4493f8;fill-opacity:.6}.p50{stroke:#e6edf3}}
</style>
<text x="8" y="18">${title}</text>
${ticks.map((ms) => `<line x1="${x(ms)}" x2="${x(ms)}" y1="30" y2="${height - 22}"/><text class="dim mid" x="${x(ms)}" y="${height - 6}">${ms}</text>`).join('\n')}
${strips.map((strip, index) => drawStrip(strip, 30 + (index + 0.5) * row, x)).join('\n')}
</svg>
`;
}

function drawStrip({ name, values }: Strip, y: number, x: (ms: number) => string): string {
  const p50 = percentile(values, 0.5);
  // Spreads the dots, so that they do not cover each other.
  const dots = values
    .filter(Number.isFinite)
    .map((ms, index) => `<circle cx="${x(ms)}" cy="${y - 6 + (index % 5) * 3}" r="3"/>`);
  const line = `<line class="p50" x1="${x(p50)}" x2="${x(p50)}" y1="${y - 11}" y2="${y + 11}"/>`;
  return `<text class="end" x="${left - 72}" y="${y + 4}">${name}</text><text class="dim end" x="${left - 10}" y="${y + 4}">${p50.toFixed(0)} ms</text>
<g class="dot">${dots.join('')}</g>${Number.isFinite(p50) ? line : ''}`;
}
