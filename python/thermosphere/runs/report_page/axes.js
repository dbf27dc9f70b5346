/* Axes: where ticks lie and what they say. */

/* Round steps of 1, 2 or 5 · 10ᵏ, about `count` of them, with as many decimals as they need. */
function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) {
    ticks.push([k * step, tickText(k * step, decimals)]);
  }
  return ticks;
}

function tickText(value, decimals) {
  if (Math.abs(value) >= 1e5) {
    const exponent = Math.floor(Math.log10(Math.abs(value)) + 1e-9);
    const mantissa = Number((value / Math.pow(10, exponent)).toFixed(2));
    return `${mantissa}·10${superscript(exponent)}`.replace('-', '−');
  }
  return value.toFixed(decimals).replace('-', '−');
}

/* Powers of ten; below two decades also 2 and 5 of each, as many of them as there is room for. */
function logTicks(low, high, room) {
  const choices = Math.log10(high / low) < 2 ? [[1, 2, 5], [1, 3], [1]] : [[1]];
  let ticks = [];
  for (const marks of choices) {
    ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      for (const m of marks) {
        const value = m * Math.pow(10, e);
        if (value >= low * 0.999 && value <= high * 1.001) ticks.push([value, powerText(m, e)]);
      }
    }
    if (ticks.reduce((sum, [, text]) => sum + 7 * text.length + 8, 0) < room) break;
  }
  return ticks;
}

function powerText(mantissa, exponent) {
  if (exponent >= -2 && exponent < 3)
    return String(Number((mantissa * Math.pow(10, exponent)).toPrecision(1)));
  return (mantissa === 1 ? '' : `${mantissa}·`) + `10${superscript(exponent)}`;
}

/* A little room around values; a span of its own for a single one; null where there is none. */
function around(values, share = 0.06) {
  const known = values.filter((v) => v !== null && Number.isFinite(v));
  if (!known.length) return null;
  const low = Math.min(...known);
  const high = Math.max(...known);
  const margin = share * (high - low) || 0.05 * Math.abs(high) || 0.5;
  return [low - margin, high + margin];
}

/* The same by factors, for logarithmic axes. */
function aroundByFactor(values) {
  const known = values.filter((v) => v > 0);
  if (!known.length) return null;
  const factor = Math.pow(Math.max(...known) / Math.min(...known), 0.05);
  const margin = factor > 1 ? Math.max(factor, 1.08) : 1.6;
  return [Math.min(...known) / margin, Math.max(...known) * margin];
}
