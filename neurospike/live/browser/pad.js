// The pad to draw on: light ink on dark, whatever the page's theme, as the training pictures are.

const SIDE = 280; // pixels of the canvas, whatever its size on the screen
const PEN = 22; // of them: MNIST's strokes are about a tenth of a digit's height

export default {
  template: `
    <div class="pad" :class="{used}">
      <canvas ref="canvas" width="${SIDE}" height="${SIDE}" role="img"
        :aria-label="'Pad: ' + hint.toLowerCase() + ', with mouse or finger'"
        @pointerdown.prevent="down" @pointermove.prevent="move"
        @pointerup.prevent="up" @pointercancel.prevent="up"
        @dragover.prevent @drop.prevent="$emit('dropped', $event)"></canvas>
      <div class="hint"><i class="material-icons">gesture</i>{{ hint }}</div>
    </div>`,

  props: { hint: { type: String, default: "Draw a digit" } },

  data: () => ({ used: false }),

  mounted() {
    this.pen = this.$refs.canvas.getContext("2d", { willReadFrequently: true });
    this.pointer = null; // id of the one that draws; a second finger does not
    this.drawn = false; // does the pad hold ink of the visitor's
    this.clear();
  },

  methods: {
    clear() {
      this.pen.fillStyle = "#0b1020";
      this.pen.fillRect(0, 0, SIDE, SIDE);
      this.used = this.drawn = false;
    },

    // Show a picture that was not drawn here; levels as stage.js has them.
    show(picture) {
      this.clear();
      this.used = true;
      const { width, height, coloured } = picture;
      const size = width * height;
      const bytes = Uint8Array.from(atob(picture.levels), (c) => c.charCodeAt(0));
      const image = new ImageData(width, height);
      for (let k = 0; k < size; k += 1) {
        const share = bytes[k] / 255;
        image.data.set(coloured ? [bytes[k], bytes[size + k], bytes[2 * size + k], 255]
          : [11 + 244 * share, 16 + 239 * share, 32 + 223 * share, 255], 4 * k);
      }
      const small = Object.assign(document.createElement("canvas"), { width, height });
      small.getContext("2d").putImageData(image, 0, 0);
      this.pen.imageSmoothingEnabled = false;
      this.pen.drawImage(small, 0, 0, SIDE, SIDE);
    },

    place(event) {
      const box = this.$refs.canvas.getBoundingClientRect();
      const scale = SIDE / box.width;
      return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    },

    down(event) {
      if (this.pointer !== null || event.button > 0) return;
      if (!this.drawn) this.clear(); // of a picture shown
      this.pointer = event.pointerId;
      this.$refs.canvas.setPointerCapture(event.pointerId);
      this.used = this.drawn = true;
      Object.assign(this.pen, { lineWidth: PEN, lineCap: "round", lineJoin: "round" });
      this.pen.strokeStyle = "#fff";
      this.last = this.middle = this.place(event);
      this.line(this.last);
    },

    move(event) {
      if (event.pointerId !== this.pointer) return;
      const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      (events.length ? events : [event]).forEach((e) => this.line(this.place(e)));
    },

    // A curve through the middles of the pointer's places: no corners where it was seen seldom.
    line([x, y]) {
      const middle = [(this.last[0] + x) / 2, (this.last[1] + y) / 2];
      this.pen.beginPath();
      this.pen.moveTo(...this.middle);
      this.pen.quadraticCurveTo(...this.last, ...middle);
      this.pen.stroke();
      this.last = [x, y];
      this.middle = middle;
    },

    up(event) {
      if (event.pointerId !== this.pointer) return;
      this.pointer = null;
      const lifted = performance.now();
      this.line(this.last); // the half that is left, up to where the pen is
      this.$emit("drawn", { png: this.$refs.canvas.toDataURL("image/png"), lifted });
    },
  },
};
