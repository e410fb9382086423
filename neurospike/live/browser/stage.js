// The stage: shows an answer step by step. The server sends all of it at once, so playing, pausing
// and stepping cost it nothing.

import { inkOf, drawPart, drawRaster, drawRate, drawTraces, framesOf, readOf } from "drawing";

const SECONDS = 2.5; // an answer takes at speed 1
const SPEEDS = [0.25, 0.5, 1, 2, 4];

export default {
  template: `
  <div class="stage" :class="{waiting: !film}" :data-answers="answers" :data-step="step"
       :data-playing="playing">
    <section class="card answer" aria-live="polite">
      <template v-if="film">
        <div class="digit" :class="{word: nameOf(film.digit).length > 2}" :data-digit="film.digit">{{ nameOf(film.digit) }}</div>
        <div>
          <div class="sure">{{ percent(film.confidence[film.digit]) }} sure</div>
          <div class="truth" v-if="film.label !== null" :class="{wrong: film.label !== film.digit}">
            {{ film.label === film.digit ? "✓ right" : "✗ it is " + nameOf(film.label) }}
          </div>
          <dl>
            <dt>network</dt><dd class="network">{{ film.milliseconds.toFixed(1) }} ms</dd>
            <template v-if="film.lifted !== null"><dt>pen to screen</dt>
              <dd class="whole" :data-ms="whole">{{ whole === null ? "" : whole.toFixed(0) + " ms" }}</dd>
            </template>
            <dt>backend</dt><dd>{{ film.backend }}</dd>
          </dl>
        </div>
      </template>
      <div v-else class="empty">{{ hint }}</div>
    </section>

    <section class="card race">
      <h2>Confidence, were it stopped now</h2>
      <div class="bars" :class="{words: known.some((name) => name.length > 2)}">
        <div v-for="(name, k) in known" :key="k" class="bar" :class="{leads: k === leader}">
          <span class="share">{{ film && votes[k] >= 0.005 ? Math.round(100 * votes[k]) + "%" : "" }}</span>
          <div class="track"><div :style="{height: 100 * (votes[k] || 0) + '%'}"></div></div>
          <b :title="name">{{ name }}</b>
        </div>
      </div>
    </section>

    <section class="card transport">
      <button class="round" @click="toggle" :disabled="!film" :aria-label="playing ? 'Pause' : 'Play'">
        <i class="material-icons">{{ playing ? "pause" : film && atEnd ? "replay" : "play_arrow" }}</i></button>
      <button @click="go(step - 1)" :disabled="!film || step <= 1" aria-label="One step back">
        <i class="material-icons">skip_previous</i></button>
      <button @click="go(step + 1)" :disabled="!film || atEnd" aria-label="One step on">
        <i class="material-icons">skip_next</i></button>
      <input type="range" min="1" :max="steps" :value="step" :disabled="!film" aria-label="Time step"
        @input="go(+$event.target.value)">
      <span class="clock"><template v-if="film">step <b>{{ step }}</b> of {{ steps }}</template></span>
      <label class="speed">speed
        <select v-model.number="speed" aria-label="Speed">
          <option v-for="s in speeds" :value="s">{{ s }}×</option>
        </select></label>
    </section>

    <section class="card input">
      <h2>Input <small v-if="film">{{ inputNote }}</small></h2>
      <div class="pair">
        <figure><canvas ref="picture"></canvas><figcaption>picture</figcaption></figure>
        <figure><canvas ref="encoded"></canvas>
          <figcaption>{{ caption }}</figcaption></figure>
      </div>
    </section>

    <section class="card output">
      <h2>Output {{ spiking ? "spikes, counted" : "membranes" }}
        <small v-if="film">in the lead: <b>{{ nameOf(leader) }}</b></small>
        <small v-else>a curve per class</small></h2>
      <div class="room"><canvas ref="output"></canvas></div>
    </section>

    <section v-for="(layer, k) in layers" :key="layer.name" class="card layer"
        :class="layers.length === 1 ? 'alone' : [2, 4].includes(layers.length) ? 'half' : 'third'">
      <h2><span>{{ layer.name }}
        <small v-if="layer.rows < layer.neurons">every {{ ordinal(layer) }} neuron</small></span>
        <small v-if="film">{{ layer.counts[step - 1] }} of {{ layer.neurons }} fire now,
          {{ percent(layer.rate) }} on average</small>
        <small v-else>a row a neuron, a mark a spike; below, how many fire</small></h2>
      <canvas ref="rasters" class="raster"></canvas>
      <canvas ref="rates" class="rate"></canvas>
    </section>
  </div>`,

  props: { names: { type: Array, default: () => ["hidden"] }, classes: { type: Array, default: () => [] },
    hint: String },

  data: () => ({
    film: null, step: 0, playing: false, speed: 1, speeds: SPEEDS, answers: 0, whole: null,
  }),

  computed: {
    known() { return this.film ? this.film.classes : this.classes; },
    steps() { return this.film ? this.film.steps : 0; },
    atEnd() { return this.step >= this.steps; },
    votes() { return this.film ? this.film.votes[Math.max(0, this.step - 1)] : []; },
    leader() { return this.film ? this.votes.indexOf(Math.max(...this.votes)) : null; },
    spiking() { return this.film && ["spikes", "first_spike"].includes(this.film.readout); },
    layers() {
      return this.film ? this.film.layers : this.names.map((name) => ({ name }));
    },
    caption() {
      if (!this.film) return "encoded";
      return this.film.reading ? "read so far" : this.film.coding + " coding";
    },
    inputNote() {
      if (this.film.reading) return `${this.film.reading.name} ${this.step} of ${this.steps} is read now`;
      const { spikes, count } = this.film.input;
      if (count === 1) return "the same current at every step";
      return `${spikes[this.step - 1]} of ${this.film.input.width * this.film.input.height} fire now`;
    },
  },

  mounted() {
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.$el);
    this.themed = new MutationObserver(() => this.draw());
    this.themed.observe(document.body, { attributes: true, attributeFilter: ["class"] });
  },

  unmounted() {
    this.resized.disconnect();
    this.themed.disconnect();
    cancelAnimationFrame(this.ticking);
  },

  methods: {
    nameOf(k) {
      return this.known[k];
    },

    percent(share) {
      return share > 0.9995 ? "> 99.9%" : (100 * share).toFixed(1) + "%";
    },

    ordinal({ rows, neurons }) {
      const every = Math.ceil(neurons / rows);
      return every === 2 ? "2nd" : every === 3 ? "3rd" : every + "th";
    },

    show(film) {
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.film = Object.freeze(film);
      this.pictures = { picture: framesOf(film.picture),
        encoded: film.reading ? readOf(film.reading) : framesOf(film.input) };
      this.counted = this.spiking ? sums(film.output) : film.output;
      this.whole = null;
      this.step = still || film.quiet ? film.steps : 1;
      this.playing = !(still || film.quiet);
      this.$nextTick(() => requestAnimationFrame(() => {
        if (film.lifted !== null) this.whole = performance.now() - film.lifted;
        this.answers += 1;
        this.draw();
        this.start();
      }));
    },

    clear() {
      this.playing = false;
      this.film = null;
      this.step = 0;
      this.$nextTick(this.draw);
    },

    toggle() {
      this.playing = !this.playing;
      if (this.playing && this.atEnd) this.step = 1;
      this.draw();
      this.start();
    },

    go(step) {
      this.playing = false;
      this.step = Math.min(this.steps, Math.max(1, step));
      this.draw();
    },

    start() {
      cancelAnimationFrame(this.ticking);
      let before = performance.now();
      let due = 0; // steps, with their fraction
      const tick = (now) => {
        if (!this.playing || !this.film) return;
        due += ((now - before) / 1000) * this.speed * Math.max(2, this.steps / SECONDS);
        before = now;
        if (due >= 1) {
          this.step = Math.min(this.steps, this.step + Math.floor(due));
          due %= 1;
          this.draw();
        }
        if (this.atEnd) this.playing = false;
        else this.ticking = requestAnimationFrame(tick);
      };
      this.ticking = requestAnimationFrame(tick);
    },

    draw() {
      const { picture, encoded, output, rasters = [], rates = [] } = this.$refs;
      const ink = inkOf(this.$el);
      const film = this.film;
      if (!film) {
        [picture, encoded, output, ...rasters, ...rates].forEach((canvas) => {
          canvas.width = canvas.width; // wipes it
        });
        return;
      }
      this.pictures.picture(picture, 0, false);
      if (film.reading) {
        this.pictures.encoded(encoded, this.step);
        [picture, encoded].forEach((canvas) => drawPart(canvas, film.reading, this.step, ink));
      } else {
        this.pictures.encoded(encoded, Math.min(this.step, film.input.count) - 1, film.input.spiking);
      }
      drawTraces(output, this.counted, this.step, this.leader, ink, this.known);
      film.layers.forEach((layer, k) => {
        drawRaster(rasters[k], layer, this.step, this.steps, ink);
        drawRate(rates[k], layer, this.step, this.steps, ink);
      });
    },
  },
};

function sums(rows) {
  const total = rows[0].map(() => 0);
  return rows.map((row) => row.map((value, k) => (total[k] += value)));
}
