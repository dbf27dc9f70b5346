/* The mean attention of a block above the diagonal, contacts or predictions below it. */

const PERCENTILE = 0.995; // of the pairs ends the colour scale, or a few bright pairs would hide the rest

const upperIndex = (i, j) => i * residues - (i * (i + 1)) / 2 + (j - i - 1); // i < j, as numpy.triu_indices

function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/* The five heat colours of the style sheet, mixed linearly; share in [0, 1] → [r, g, b]. */
function heatScale() {
  const stops = [0, 1, 2, 3, 4].map((k) => {
    const code = colourOf(`--heat-${k}`);
    return [1, 3, 5].map((at) => parseInt(code.slice(at, at + 2), 16));
  });
  return (share) => {
    const at = Math.min(Math.max(share, 0), 1) * 4;
    const low = Math.min(Math.floor(at), 3);
    return stops[low].map((part, k) => part + (at - low) * (stops[low + 1][k] - part));
  };
}

/*
 * view: {values: attention of pairs i < j, top: end of the colour scale, mode: 'contacts' | 'overlay' |
 * 'predictions', pairs: [i, j, …] highest first, right: '0101…', separation}.
 */
function drawMap(host, view) {
  const canvas = host.querySelector('canvas');
  const ratio = window.devicePixelRatio || 1;
  const size = host.clientWidth;
  const margin = 34;
  const cell = (size - margin - 4) / residues;
  canvas.width = canvas.height = Math.round(size * ratio);
  const pen = canvas.getContext('2d');
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, size, size);

  const heat = heatScale();
  const image = new ImageData(residues, residues);
  for (let i = 0; i < residues; i++) {
    for (let j = 0; j < residues; j++) {
      if (i === j || (i > j && view.mode !== 'overlay')) continue;
      const value = view.values[upperIndex(Math.min(i, j), Math.max(i, j))];
      if (value === null) continue;
      image.data.set([...heat(value / view.top), 255], 4 * (i * residues + j));
    }
  }
  const small = new OffscreenCanvas(residues, residues);
  small.getContext('2d').putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, margin, 0, residues * cell, residues * cell);

  const corner = (i, j) => [margin + j * cell, i * cell]; // row i, column j
  const fill = (i, j, colour) => {
    pen.fillStyle = colour;
    pen.fillRect(...corner(i, j), cell, cell);
  };
  const outline = (i, j) => {
    const [px, py] = corner(i, j);
    pen.strokeRect(px + 0.5, py + 0.5, cell - 1, cell - 1);
  };
  pen.strokeStyle = colourOf('--contact');
  pen.lineWidth = Math.max(1, cell / 5);
  for (const key of contacts) {
    const [i, j] = [Math.floor(key / residues), key % residues];
    if (view.mode === 'contacts') fill(j, i, colourOf('--contact'));
    if (view.mode === 'overlay') [outline(i, j), outline(j, i)];
    if (view.mode === 'predictions' && j - i >= view.separation) fill(j, i, colourOf('--missed'));
  }
  if (view.mode === 'predictions') {
    for (let k = 0; k < view.right.length; k++) {
      fill(
        view.pairs[2 * k + 1],
        view.pairs[2 * k],
        colourOf(view.right[k] === '1' ? '--series-2' : '--series-1'),
      );
    }
  }

  pen.strokeStyle = pen.fillStyle = colourOf('--soft');
  pen.lineWidth = 1;
  pen.strokeRect(margin, 0.5, residues * cell, residues * cell - 0.5);
  pen.beginPath();
  pen.moveTo(margin, 0);
  pen.lineTo(margin + residues * cell, residues * cell);
  pen.stroke();
  pen.font = `12px ${getComputedStyle(host).fontFamily}`;
  for (let k = 9; k < residues; k += residues > 150 ? 50 : residues > 40 ? 20 : 10) {
    const at = (k + 0.5) * cell;
    pen.textAlign = 'center';
    pen.fillText(study.protein.labels[k], margin + at, residues * cell + 15);
    pen.textAlign = 'right';
    pen.fillText(study.protein.labels[k], margin - 5, at + 4);
  }
  pen.textAlign = 'center';
  pen.fillText('residue', margin + (residues * cell) / 2, size - 4);
  answerPairs(host, view, margin, cell);
}

function pairLines(i, j, view) {
  const [low, high] = [Math.min(i, j), Math.max(i, j)];
  const value = view.values[upperIndex(low, high)];
  const lines = [
    `${residueName(low)} – ${residueName(high)}, |i−j| = ${high - low}`,
    `mean attention ${digits(value, 3)}`,
    isContact(low, high) ? 'contact' : 'no contact',
  ];
  for (let k = 0; k < view.right.length; k++) {
    if (view.pairs[2 * k] === low && view.pairs[2 * k + 1] === high) {
      lines.push(
        `prediction ${k + 1} of ${view.right.length}: ${view.right[k] === '1' ? 'right' : 'wrong'}`,
      );
    }
  }
  return lines;
}

function answerPairs(host, view, margin, cell) {
  const frame = host.querySelector('.cell');
  let at = null;
  const show = (pair, spoken) => {
    at = pair;
    frame.hidden = !pair;
    if (!pair) return hideTip();
    const [i, j] = pair;
    const [px, py] = [margin + j * cell, i * cell];
    Object.assign(frame.style, {
      left: `${px - 2}px`,
      top: `${py - 2}px`,
      width: `${cell + 4}px`,
      height: `${cell + 4}px`,
    });
    const corner = host.getBoundingClientRect();
    return showTip(pairLines(i, j, view), corner.left + px + cell, corner.top + py, spoken);
  };
  const inside = (i, j) => i >= 0 && j >= 0 && i < residues && j < residues && i !== j;
  host.onpointermove = host.onclick = (event) => {
    const corner = host.getBoundingClientRect();
    const j = Math.floor((event.clientX - corner.left - margin) / cell);
    const i = Math.floor((event.clientY - corner.top) / cell);
    show(inside(i, j) ? [i, j] : null, false);
  };
  host.onpointerleave = host.onblur = () => show(null, false);
  host.onkeydown = (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[
      event.key
    ];
    if (!step) return;
    event.preventDefault();
    let [i, j] = at || [0, 0];
    [i, j] = [i + step[0], j + step[1]];
    if (i === j) [i, j] = [i + step[0], j + step[1]]; // over the diagonal
    if (inside(i, j)) show([i, j], true);
  };
}
