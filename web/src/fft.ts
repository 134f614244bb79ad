import FFT from "fft.js";

/** Real Fourier transforms of one size, a power of two. Spectra are interleaved: re, im, re, im, ... */
export class RealFFT {
  readonly bins: number;
  private readonly fft: FFT;
  private readonly time: number[];
  private readonly full: number[];

  constructor(readonly size: number) {
    this.fft = new FFT(size);
    this.bins = size / 2 + 1;
    this.time = this.fft.createComplexArray();
    this.full = this.fft.createComplexArray();
  }

  /** `size` samples to the bins 0 ... size / 2. */
  forward(x: ArrayLike<number>): Float64Array {
    this.fft.realTransform(this.full, x);
    const spectrum = new Float64Array(2 * this.bins);
    for (let i = 0; i < spectrum.length; i++) spectrum[i] = this.full[i]!;
    return spectrum;
  }

  /** The inverse of `forward`. */
  inverse(spectrum: Float64Array): Float64Array {
    for (let i = 0; i < spectrum.length; i++) this.full[i] = spectrum[i]!;
    this.fft.completeSpectrum(this.full);
    this.fft.inverseTransform(this.time, this.full);
    const x = new Float64Array(this.size);
    for (let i = 0; i < this.size; i++) x[i] = this.time[2 * i]!;
    return x;
  }
}
