/* The tip beside what is pointed at, and the legends above charts. */

const tip = document.getElementById('tip');

/* Lines beside a point of the window, wholly inside it; read aloud where keys led there. */
function showTip(lines, clientX, clientY, spoken) {
  tip.replaceChildren(
    ...lines.map((line) => {
      const row = document.createElement('div');
      row.textContent = line;
      return row;
    }),
  );
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const right = clientX + 14 + width < document.documentElement.clientWidth;
  const px = Math.max(4, right ? clientX + 14 : clientX - 14 - width);
  const py = Math.max(4, clientY - height - 12);
  tip.style.transform = `translate(${Math.round(px)}px, ${Math.round(py)}px)`;
  if (spoken) document.getElementById('spoken').textContent = lines.join('; ');
}

function hideTip() {
  tip.hidden = true;
}

/* Entries {cls, symbol | line, dashed, hollow, half, swatch | bare, text, value} above a chart. */
function drawLegend(list, entries) {
  list.replaceChildren(
    ...entries.map((entry) => {
      const item = document.createElement('li');
      if (!entry.bare) legendMark(item, entry);
      item.append(entry.text);
      if (entry.value) {
        const value = document.createElement('b');
        value.textContent = entry.value;
        item.append(value);
      }
      return item;
    }),
  );
}

function legendMark(item, entry) {
  const picture = svg(item, 'svg', { class: entry.cls || 'grey', 'aria-hidden': 'true' });
  if (entry.symbol !== undefined) {
    svg(picture, 'path', {
      d: symbolPath(entry.symbol, 11, 7, 4),
      class: `mark ${entry.hollow ? 'hollow' : ''} ${entry.half ? 'half' : ''}`,
    });
  } else if (entry.swatch) {
    svg(picture, 'rect', { x: 5, y: 1, width: 12, height: 12, class: entry.swatch });
  } else {
    svg(picture, 'line', {
      x1: 1,
      x2: 21,
      y1: 7,
      y2: 7,
      class: entry.guide ? 'guide' : `curve ${entry.dashed ? 'dashed' : ''}`,
    });
  }
}
