// What the stage draws on its canvases. Sharp on every screen, colours from the style sheet.

export function inkOf(element) {
  const style = getComputedStyle(element);
  const names = ["ink", "faint", "line", "spike", "now", "lead", "quiet"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

// A canvas as large as it is shown, measured in CSS pixels.
function sheet(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * density));
  canvas.height = Math.max(1, Math.round(height * density));
  const pen = canvas.getContext("2d");
  pen.scale(density, density);
  return { pen, width, height };
}

// Draws one of the pictures that the server packed: levels of K x height x width bytes.
// Coloured ones are levels of red, then of green, then of blue.
export function framesOf({ count, height, width, levels, coloured }) {
  const bytes = bytesOf(levels);
  const paint = painter(height, width);
  const size = width * height;
  return (canvas, frame, spiking) => {
    if (coloured) {
      paint(canvas, (k) => [bytes[k], bytes[size + k], bytes[2 * size + k]]);
      return;
    }
    const from = Math.max(0, Math.min(frame, count - 1)) * size;
    paint(canvas, (k) => glow(bytes[from + k], spiking ? [230, 159, 0] : WHITE));
  };
}

// Draws what a network that reads a picture part by part has read of it after so many steps.
export function readOf({ picture, part, places }) {
  const { height, width, levels } = picture;
  const bytes = bytesOf(levels);
  const paint = painter(height, width);
  return (canvas, step) => {
    const read = new Uint8Array(bytes.length);
    places.slice(0, step).forEach((place) => {
      for (let row = 0; row < part[0]; row += 1) {
        const from = place + row * width;
        read.set(bytes.subarray(from, from + part[1]), from);
      }
    });
    paint(canvas, (k) => glow(read[k], WHITE));
  };
}

// Frames the part that is read at a step, on a canvas that shows the picture.
export function drawPart(canvas, { picture, part, places }, step, ink) {
  const { clientWidth, clientHeight } = canvas;
  const across = clientWidth / picture.width;
  const down = clientHeight / picture.height;
  const place = places[step - 1];
  const x = (place % picture.width) * across;
  const y = Math.floor(place / picture.width) * down;
  const pen = canvas.getContext("2d");
  pen.strokeStyle = ink.now;
  pen.lineWidth = 2;
  pen.strokeRect(Math.max(1, x - 1), Math.max(1, y - 1),
    Math.min(clientWidth - 2, part[1] * across + 2), part[0] * down + 2);
}

function bytesOf(levels) {
  return Uint8Array.from(atob(levels), (c) => c.charCodeAt(0));
}

const WHITE = [255, 255, 255];

// The colour of a level of 0 to 255, dark to bright.
function glow(level, [r, g, b]) {
  const share = level / 255;
  return [11 + (r - 11) * share, 16 + (g - 16) * share, 32 + (b - 32) * share];
}

// A function that fills a canvas with height x width pixels, each of the colour it is asked for.
function painter(height, width) {
  const small = Object.assign(document.createElement("canvas"), { width, height });
  const image = new ImageData(width, height);
  return (canvas, colourOf) => {
    for (let k = 0; k < width * height; k += 1) image.data.set([...colourOf(k), 255], 4 * k);
    small.getContext("2d").putImageData(image, 0, 0);
    const { pen, width: w, height: h } = sheet(canvas);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, w, h);
  };
}

// Spikes up to the step, those of the step itself in another colour.
export function drawRaster(canvas, layer, step, steps, ink) {
  const { pen, width, height } = sheet(canvas);
  const across = width / steps;
  const down = height / layer.rows;
  const wide = Math.max(1.5, Math.min(across * 0.6, 30));
  const high = Math.max(1, Math.min(down * 0.85, 5));
  pen.fillStyle = ink.faint;
  pen.fillRect((step - 1) * across, 0, across, height);
  layer.spikes.slice(0, step).forEach((rows, t) => {
    pen.fillStyle = t === step - 1 ? ink.now : ink.spike;
    const x = (t + 0.5) * across - wide / 2;
    rows.forEach((row) => pen.fillRect(x, (row + 0.5) * down - high / 2, wide, high));
  });
}

// Share of the layer that fires, a bar a step.
export function drawRate(canvas, layer, step, steps, ink) {
  const { pen, width, height } = sheet(canvas);
  const across = width / steps;
  const most = Math.max(0.05 * layer.neurons, ...layer.counts);
  pen.fillStyle = ink.line;
  pen.fillRect(0, height - 1, width, 1);
  layer.counts.slice(0, step).forEach((count, t) => {
    pen.fillStyle = t === step - 1 ? ink.now : ink.spike;
    const high = (count / most) * (height - 2);
    pen.fillRect(t * across + 0.1 * across, height - 1 - high, 0.8 * across, high);
  });
}

// A curve for each output neuron, the leader's on top, with the classes at their ends.
export function drawTraces(canvas, rows, step, leader, ink, classes) {
  const { pen, width, height } = sheet(canvas);
  const all = rows.flat();
  const low = Math.min(0, ...all);
  const high = Math.max(...all, low + 1e-6);
  pen.font = NAME;
  const room = Math.max(...classes.map((name) => pen.measureText(short(name)).width));
  const right = width - Math.max(26, room + 18);
  const x = (t) => 4 + (rows.length > 1 ? (t / (rows.length - 1)) * (right - 8) : right / 2);
  const y = (value) => 8 + (1 - (value - low) / (high - low)) * (height - 16);
  pen.strokeStyle = ink.line;
  pen.setLineDash([3, 3]);
  stroke(pen, [[0, y(0)], [right, y(0)]], 1);
  pen.setLineDash([]);
  const order = rows[0].map((_, k) => k).filter((k) => k !== leader);
  const free = []; // heights already taken by a class's name
  [...order, leader].forEach((k) => {
    const leads = k === leader;
    const points = rows.slice(0, step).map((row, t) => [x(t), y(row[k])]);
    pen.strokeStyle = leads ? ink.lead : ink.quiet;
    stroke(pen, points, leads ? 3 : 1.2);
    const [endX, endY] = points[points.length - 1];
    pen.fillStyle = pen.strokeStyle;
    if (leads || step === 1) {
      pen.beginPath();
      pen.arc(endX, endY, leads ? 4 : 2, 0, 7);
      pen.fill();
    }
    free.push({ name: short(classes[k]), leads, x: endX + 9, y: endY });
  });
  named(pen, free, ink);
}

const NAME = "700 15px system-ui, sans-serif"; // of the class in the lead

function short(name) {
  return name.length > 12 ? name.slice(0, 11) + "…" : name;
}

function named(pen, labels, ink) {
  pen.textBaseline = "middle";
  const taken = [];
  [...labels].reverse().forEach(({ name, leads, x, y }) => {
    if (!leads && taken.some((other) => Math.abs(other - y) < 11)) return;
    taken.push(y);
    pen.font = leads ? NAME : "12px system-ui, sans-serif";
    pen.fillStyle = leads ? ink.lead : ink.quiet;
    pen.fillText(name, x, y);
  });
}

function stroke(pen, points, wide) {
  pen.lineWidth = wide;
  pen.lineJoin = "round";
  pen.beginPath();
  points.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
}
