/**
 * A client for a service that `clearstate serve` runs: one file, no dependencies, for browsers and Node.js 22 or later
 * (Node.js 20 needs a WebSocket: `new Client(url, {WebSocket})`).
 *
 *     import { Client } from "http://127.0.0.1:8000/client.js";
 *
 *     const client = new Client("http://127.0.0.1:8000", { key: "..." });      // the key only if the service has keys
 *     const clean = await client.enhance(file, { format: "mp3", strength: 12 }); // Blob, File or bytes in, Blob out
 *
 *     const job = await client.submit("enhance", file);                         // a long file
 *     const result = await job.result((share) => (bar.value = share));
 *
 *     const stream = await client.stream({ rate: 48000 });                      // live sound, Float32Array
 *     stream.onsamples = (samples) => play(samples);
 *     stream.send(samples);
 *     const last = await stream.flush();
 *     stream.close();
 */

/** A request that the service refused. `code` is for programs, such as "busy". */
export class ServiceError extends Error {
  constructor(code, message, status = 0) {
    super(`${message} (${code})`);
    this.name = "ServiceError";
    this.code = code;
    this.status = status;
  }
}

export class Client {
  /**
   * @param {string} url of the service
   * @param {{key?: string, WebSocket?: any}} options
   */
  constructor(url = "http://127.0.0.1:8000", { key, WebSocket = globalThis.WebSocket } = {}) {
    this.url = url.replace(/\/+$/, "");
    this.key = key;
    this.WebSocket = WebSocket;
  }

  /** Remove noise. Options: format, strength, residual, channels, model, track. Resolves to a Blob. */
  enhance(file, options) {
    return this.#blob("enhance", file, options);
  }

  /** Separate speakers. Options: enhance, model, track. Resolves to a Blob, a ZIP file. */
  separate(file, options) {
    return this.#blob("separate", file, options);
  }

  /** Add the missing high frequencies. Options: format, to, model, track. Resolves to a Blob. */
  extend(file, options) {
    return this.#blob("extend", file, options);
  }

  /** Send a file to be processed in the background. Resolves to a Job. */
  async submit(task, file, options = {}) {
    const response = await this.#post(task, file, { ...options, background: true });
    return new Job(this, await response.json());
  }

  /** The models of the service. */
  async models() {
    return (await this.request("GET", "/v1/models")).json();
  }

  /**
   * Open a live stream. Options: rate (Hz), channels, strength, channels_mode.
   * Samples are Float32Array, interleaved, full scale at 1.
   */
  async stream({ rate = 16000, channels = 1, ...options } = {}) {
    const socket = new this.WebSocket(this.url.replace(/^http/, "ws") + "/v1/stream");
    const header = { rate, channels, format: "f32le", ...options, ...(this.key && { key: this.key }) };
    return LiveStream.open(socket, header);
  }

  /** Send a request. Resolves to a Response; rejects with a ServiceError if the service refuses it. */
  async request(method, path, body) {
    const headers = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    const response = await fetch(this.url + path, { method, body, headers });
    if (response.ok) return response;
    const text = await response.text();
    let error = { code: "failed", message: text.slice(0, 200) };
    try {
      error = JSON.parse(text).error;
    } catch {}
    throw new ServiceError(error.code, error.message, response.status);
  }

  #post(task, file, options = {}) {
    const given = Object.entries(options).filter(([, value]) => value !== undefined && value !== null);
    return this.request("POST", `/v1/${task}?${new URLSearchParams(given)}`, file);
  }

  async #blob(task, file, options) {
    return (await this.#post(task, file, options)).blob();
  }
}

/** A file that the service processes in the background. */
export class Job {
  constructor(client, status) {
    this.client = client;
    this.status = status;
    this.id = status.id;
  }

  /** Wait for the job. Resolves to a Blob; rejects with a ServiceError if the job fails. */
  async result(onprogress = () => {}, milliseconds = 500) {
    while (this.status.state !== "done") {
      await new Promise((resolve) => setTimeout(resolve, milliseconds));
      this.status = await (await this.client.request("GET", `/v1/jobs/${this.id}`)).json();
      if (this.status.error) throw new ServiceError(this.status.error.code, this.status.error.message);
      onprogress(this.status.progress);
    }
    return (await this.client.request("GET", `/v1/jobs/${this.id}/result`)).blob();
  }

  /** Delete the job and its result; stop it if it is running. */
  async delete() {
    await this.client.request("DELETE", `/v1/jobs/${this.id}`);
  }
}

/** A live stream. `latencySamples` is by how much the output trails the input. */
export class LiveStream {
  onsamples = (samples) => {};
  onclose = (error) => {};
  #flushed = null;
  #owed = 0; // samples sent whose output has not arrived
  #rest = new Float32Array(0);

  /** @returns {Promise<LiveStream>} */
  static open(socket, header) {
    return new Promise((resolve, reject) => {
      const stream = new LiveStream();
      stream.socket = socket;
      socket.binaryType = "arraybuffer";
      socket.onopen = () => socket.send(JSON.stringify(header));
      socket.onmessage = ({ data }) => {
        if (typeof data !== "string") return stream.#samples(new Float32Array(data));
        const message = JSON.parse(data);
        if (message.type === "ready") {
          stream.latencySamples = message.latency_samples;
          resolve(stream);
        } else if (message.type === "flushed") {
          stream.#finish();
        } else {
          stream.error = new ServiceError(message.code, message.message);
        }
      };
      socket.onclose = ({ code, reason }) => {
        const error = stream.error ?? (code === 1000 ? null : new ServiceError("closed", reason || `close code ${code}`));
        reject(error);
        stream.#flushed?.reject(error);
        stream.onclose(error);
      };
    });
  }

  /** Send samples, at most one second. As many arrive at `onsamples`. */
  send(samples) {
    this.#owed += samples.length;
    this.socket.send(samples instanceof Float32Array ? samples : Float32Array.from(samples));
  }

  /** Resolves to the last `latencySamples`; the stream then starts anew. */
  flush() {
    return new Promise((resolve, reject) => {
      this.#rest = new Float32Array(0);
      this.#flushed = { resolve, reject };
      this.socket.send('{"type": "flush"}');
    });
  }

  /** End the stream. */
  close() {
    this.socket.close(1000);
  }

  #samples(samples) {
    if (this.#owed === 0) {
      this.#rest = samples; // of a flush
    } else {
      this.#owed -= samples.length;
      this.onsamples(samples);
    }
  }

  #finish() {
    this.#flushed?.resolve(this.#rest);
    this.#flushed = null;
  }
}
