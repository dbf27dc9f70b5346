/* The study's numbers, and how they are read, written and named. */

const study = JSON.parse(document.getElementById('study').textContent);
const sequence = study.protein ? study.protein.sequence : '';
const residues = sequence.length;
const contacts = new Set();
if (study.protein) {
  const flat = study.protein.contacts;
  for (let k = 0; k < flat.length; k += 2) contacts.add(flat[k] * residues + flat[k + 1]);
}

const isContact = (i, j) => contacts.has(Math.min(i, j) * residues + Math.max(i, j));
const residueName = (i) => sequence[i] + study.protein.labels[i];

const MISSING = 65535;

/* Values of report_data.packed: 16-bit codes in base64; null where there is none. */
function unpack(packed) {
  const bytes = atob(packed.codes);
  const values = new Array(bytes.length / 2);
  for (let k = 0; k < values.length; k++) {
    const code = bytes.charCodeAt(2 * k) + 256 * bytes.charCodeAt(2 * k + 1);
    values[k] = code === MISSING ? null : packed.low + packed.step * code;
  }
  return values;
}

const QUANTITIES = {
  train_loss: {
    symbol: '⟨U⟩',
    label: '⟨U⟩ (nats per masked site)',
    trace: 'training loss U (nats per masked site)',
  },
  specific_heat: { symbol: 'C', label: 'C (units of k_B)' },
  validation_error: {
    symbol: 'validation error',
    label: 'share of masked sites',
    trace: 'validation error',
  },
  test_error: { symbol: 'test error', label: 'share of masked sites', trace: 'test error' },
  distance: { symbol: '|w−w₀|²/Q', trace: 'squared distance |w−w₀|²/Q' },
  kinetic_ratio: { symbol: 'kinetic/T', trace: 'kinetic temperature / T' },
};

/* Four significant digits, powers of ten beyond a million and below a ten-thousandth. */
function digits(value, significant = 4) {
  if (value === null) return '–';
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-4)) {
    return value
      .toExponential(significant - 1)
      .replace('e+', 'e')
      .replace('-', '−');
  }
  return Number(value.toPrecision(significant)).toString().replace('-', '−');
}

const superscript = (n) =>
  String(n)
    .replace('-', '⁻')
    .replace(/\d/g, (d) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[d]);

const layerKind = (one) => one.kind.replace('_', '–');
const blockName = (block) => `block ${block + 1}`;
