/* What is chosen, the controls that choose it, and drawing again when it changes. */

const root = document.getElementById('explore');
const slider = document.getElementById('temperature');

const state = {
  model: 0,
  at: 0,
  weights: 'samples',
  axis: 'T',
  compare: true,
  block: 0,
  rule: 0,
  map: 'contacts',
  layer: 'norm1.gain',
  norm: 'norm1.gain',
  observable: 'train_loss',
};

/* Change what is shown; a new model starts at its typical temperature and best block. */
function choose(changes) {
  const before = state.model;
  Object.assign(state, changes);
  const model = study.models[state.model];
  if (state.model !== before) {
    if (changes.at === undefined) state.at = model.typical;
    state.block = bestBlock(model);
    if (!model.peak_trusted) state.axis = 'T';
    fillControls();
  }
  draw();
  remember(model);
}

function bestBlock(model) {
  const { attention } = model.ensembles[state.at];
  return attention ? attention.best : 0;
}

/* Radio buttons in a fieldset: options [[value, text, disabled]]. */
function radios(id, options, current, pick) {
  const set = document.getElementById(id);
  set.querySelectorAll('label').forEach((label) => label.remove());
  for (const [value, text, disabled] of options) {
    const label = document.createElement('label');
    const input = document.createElement('input');
    Object.assign(input, {
      type: 'radio',
      name: id,
      value,
      checked: value === current,
      disabled: Boolean(disabled),
    });
    input.onchange = () => pick(value);
    label.append(input, text);
    set.append(label);
  }
}

function options(id, entries, current, pick) {
  const select = document.getElementById(id);
  select.replaceChildren(
    ...entries.map(([value, text]) => new Option(text, value, false, value === current)),
  );
  select.onchange = () => pick(entries[select.selectedIndex][0]);
}

/* Controls that depend on the model. */
function fillControls() {
  const model = study.models[state.model];
  radios(
    'choose-model',
    study.models.map((one, index) => [index, one.name]),
    state.model,
    (index) => choose({ model: index }),
  );
  radios(
    'choose-weights',
    [
      ['samples', 'sampled'],
      ['ES', 'ES'],
      ['OT', 'OT'],
    ],
    state.weights,
    (weights) => choose({ weights }),
  );
  radios(
    'choose-axis',
    [
      ['T', 'T'],
      ['T/T*', 'T/T*', !model.peak_trusted],
    ],
    state.axis,
    (axis) => choose({ axis }),
  );
  radios('choose-map', Object.entries(MAP_MODES), state.map, (map) => choose({ map }));
  const blocks =
    1 +
    Math.max(
      -1,
      ...[...model.layers, ...model.norms].map((one) => (one.block === null ? -1 : one.block)),
    );
  document.getElementById('choose-block').hidden = blocks < 2;
  radios(
    'choose-block',
    Array.from({ length: Math.max(0, blocks) }, (_, k) => [k, String(k + 1)]),
    state.block,
    (block) => choose({ block }),
  );
  slider.max = model.temperatures.length - 1;
  slider.disabled = model.temperatures.length < 2;
  const kinds = (list) => list.filter(inBlock).map((one) => [one.kind, layerKind(one)]);
  options('layer', kinds(model.layers), state.layer, (layer) => choose({ layer }));
  options('norm', kinds(model.norms), state.norm, (norm) => choose({ norm }));
  options(
    'observable',
    Object.entries(QUANTITIES)
      .filter(([, one]) => one.trace)
      .map(([key, one]) => [key, one.trace]),
    state.observable,
    (observable) => choose({ observable }),
  );
  options(
    'rule',
    study.precision.map((rule, index) => [index, rule.label]),
    state.rule,
    (rule) => choose({ rule }),
  );
}

function draw() {
  hideTip();
  const model = study.models[state.model];
  slider.value = state.at;
  const text = document.getElementById('temperature-text');
  text.textContent =
    temperatureText(model, state.at) + (model.equilibrated[state.at] ? '' : ` (${standing(model, state.at)})`);
  text.className = model.equilibrated[state.at] ? '' : 'not';
  slider.setAttribute('aria-valuetext', text.textContent);
  for (const [id, value] of [
    ['choose-weights', state.weights],
    ['choose-axis', state.axis],
    ['choose-model', state.model],
    ['choose-block', state.block],
  ]) {
    for (const input of document.querySelectorAll(`#${id} input`))
      input.checked = input.value === String(value);
  }
  document.getElementById('layer').value = state.layer;
  document.getElementById('norm').value = state.norm;

  // Charts fill the panels of a row, whose height these two decide.
  drawNumbers(model);
  drawAttention(model);
  drawLadderLegend();
  for (const key of ['train_loss', 'specific_heat', 'validation_error', 'test_error'])
    drawLadder(key, key);
  const rule = study.precision[state.rule];
  if (rule) drawLadder('precision', rule.key, { random: rule.random, zero: true });
  else panel('precision').hidden = true;
  drawTraces(model);
  drawSimilarity(model);
  drawNorms(model);
}

/* The choice is in the address, so that a link or a print shows the same. */
function remember(model) {
  const parts = { model: model.name, T: model.temperature_texts[state.at], weights: state.weights };
  window.history.replaceState(null, '', `#${new URLSearchParams(parts)}`);
}

function recall() {
  const parts = new URLSearchParams(window.location.hash.slice(1));
  const index = study.models.findIndex((one) => one.name === parts.get('model'));
  if (index < 0) return;
  const model = study.models[index];
  const at = model.temperature_texts.indexOf(parts.get('T'));
  state.model = index;
  state.at = at >= 0 ? at : model.typical;
  if (['ES', 'OT'].includes(parts.get('weights'))) state.weights = parts.get('weights');
}

function start() {
  const first = study.models[0];
  if (!first) return;
  state.at = first.typical;
  recall();
  const model = study.models[state.model];
  state.block = bestBlock(model);
  if (study.models.every((one) => one.peak_trusted)) state.axis = 'T/T*';
  state.rule = Math.max(
    0,
    study.precision.findIndex((rule) => rule.key === 'precision_at_l_tolerant'),
  );
  root.hidden = false;
  document.querySelectorAll('details.still').forEach((details) => {
    details.open = false;
  });
  document.getElementById('others').hidden = study.models.length < 2;
  document.getElementById('choose-model').hidden = study.models.length < 2;
  document.getElementById('compare').onchange = (event) =>
    choose({ compare: event.target.checked });
  slider.oninput = () => choose({ at: Number(slider.value), weights: 'samples' });
  fillControls();
  let width = 0;
  new ResizeObserver(() => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    draw();
  }).observe(root);
  window.matchMedia('(prefers-color-scheme: dark)').onchange = draw;
  window.onscroll = hideTip;
  window.onhashchange = () => {
    recall();
    fillControls();
    draw();
  };
}

start();
