// The text format of Prometheus, and what two readings of counters and histograms say.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { n: "\n" };

// name -> its samples, each with labels and value.
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\(.)/g, (_, character) => ESCAPED[character] ?? character);
    }
    const sample = { labels, value: Number(match[3].replace("Inf", "Infinity")) };
    if (found.has(match[1])) found.get(match[1]).push(sample);
    else found.set(match[1], [sample]);
  }
  return found;
}

export function total(metrics, name, holds = () => true) {
  return (metrics.get(name) ?? []).reduce((sum, one) => sum + (holds(one.labels) ? one.value : 0), 0);
}

// Upper bound -> how many were at most that, over all labels.
export function buckets(metrics, name) {
  const counts = new Map();
  for (const { labels, value } of metrics.get(`${name}_bucket`) ?? []) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return counts;
}

// As Prometheus' histogram_quantile: evenly spread within the bucket. null: nothing was counted between the readings.
export function quantile(share, before, now) {
  const bounds = [...now.keys()].sort((one, other) => one - other);
  const counts = bounds.map((bound) => now.get(bound) - (before.get(bound) ?? 0));
  const wanted = share * counts.at(-1);
  if (!(wanted > 0)) return null;
  const index = counts.findIndex((count) => count >= wanted);
  if (bounds[index] === Infinity) return bounds[index - 1];
  const [low, below] = index ? [bounds[index - 1], counts[index - 1]] : [0, 0];
  return low + (bounds[index] - low) * (wanted - below) / (counts[index] - below);
}
