//! The preprocessing of sounds in the ports of whisper and voxtral, beside transformers' feature extractor: the findings
//! whisper-mel and voxtral-chunk of results/findings.md. No run shows them, because a run gives every variant the same features.

use candle_core::{Device, Tensor};
use candle_transformers::models::voxtral;
use candle_transformers::models::whisper::audio::log_mel_spectrogram_;

/// Whisper's `n_fft` and `hop_length`.
const SIZES: (usize, usize) = (400, 160);
/// Mel bins of the fixture.
const BINS: usize = 8;

/// The sound of tests/fixtures/mel.py.
fn sound(seconds: usize) -> Vec<f32> {
    let at = |n: usize| {
        let n = n as f64;
        (0.4 * (n * n * 2e-5).sin() + 0.1 * (n * 0.9).sin()) as f32
    };
    (0..16_000 * seconds).map(at).collect()
}

fn fixture(name: &str) -> Tensor {
    let tensors =
        candle_core::safetensors::load(crate::support::fixture("mel.safetensors"), &Device::Cpu).unwrap();
    tensors[name].clone()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The port's spectrum, `[bins, frames]`.
fn mel(samples: &[f32]) -> Tensor {
    let mel = log_mel_spectrogram_(samples, &values(&fixture("filters")), SIZES.0, SIZES.1, BINS, false);
    let frames = mel.len() / BINS;
    Tensor::from_vec(mel, (BINS, frames), &Device::Cpu).unwrap()
}

/// What the port's spectrum would be if it differed only in the places that are named: a frame's window begins at its sample
/// and not 200 before, and each power is counted twice.
fn expected(samples: &[f32], is_centred: bool, is_once: bool, frames: usize) -> Vec<f32> {
    let (size, hop) = SIZES;
    let filters = values(&fixture("filters"));
    let half = if is_centred { size / 2 } else { 0 };
    // Reflected before the sound, as torch.stft and transformers do; after it there is silence.
    let sample = |at: i64| samples.get(at.unsigned_abs() as usize).copied().unwrap_or(0.0);
    let mut mel = vec![0f32; BINS * frames];
    for frame in 0..frames {
        let power: Vec<f64> = (0..=size / 2)
            .map(|k| {
                let (mut re, mut im) = (0f64, 0f64);
                for j in 0..size {
                    let angle = std::f64::consts::TAU * (k * j % size) as f64 / size as f64;
                    let window = 0.5 - 0.5 * (std::f64::consts::TAU * j as f64 / size as f64).cos();
                    let x = window * f64::from(sample((frame * hop + j) as i64 - half as i64));
                    re += x * angle.cos();
                    im -= x * angle.sin();
                }
                let is_doubled = !is_once && k > 0 && k < size / 2;
                (re * re + im * im) * if is_doubled { 2.0 } else { 1.0 }
            })
            .collect();
        for bin in 0..BINS {
            let row = &filters[bin * (size / 2 + 1)..][..=size / 2];
            let sum: f64 = row.iter().zip(&power).map(|(filter, power)| f64::from(*filter) * power).sum();
            mel[bin * frames + frame] = sum.max(1e-10).log10() as f32;
        }
    }
    let floor = mel.iter().copied().fold(f32::MIN, f32::max) - 8.0;
    mel.iter().map(|value| (value.max(floor) + 4.0) / 4.0).collect()
}

fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    let sum = |it: &mut dyn Iterator<Item = f64>| it.map(|x| x * x).sum::<f64>();
    let difference = sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (difference / sum(&mut b.iter().map(|b| f64::from(*b)))).sqrt()
}

#[test]
fn whisper_s_spectrum_is_not_centred_and_counts_each_power_twice() {
    let (sound, theirs) = (sound(1), values(&fixture("one_second")));
    let port = values(&mel(&sound).narrow(1, 0, 120).unwrap());
    let computed = |is_centred, is_once| expected(&sound, is_centred, is_once, 120);
    let found = [
        ("the port", relative_l2(&port, &theirs)),
        ("transformers as computed here", relative_l2(&computed(true, true), &theirs)),
        ("the port as computed here", relative_l2(&computed(false, false), &port)),
        ("not centred alone", relative_l2(&computed(false, true), &theirs)),
        ("twice alone", relative_l2(&computed(true, false), &theirs)),
    ];
    println!("{found:?}");
    let [port, ours, reproduced, shifted, doubled] = found.map(|(_, number)| number);
    // f32 spectra of a chirp; both causes are far larger.
    assert!(ours < 1e-4 && reproduced < 1e-4, "{found:?}");
    assert!(port > 0.05 && shifted > 0.02 && doubled > 0.02, "{found:?}");
}

#[test]
fn thirty_seconds_become_more_than_one_chunk_in_voxtral() {
    let frames = values(&fixture("frames").to_dtype(candle_core::DType::F32).unwrap());
    assert_eq!(frames, [3000.0, 3000.0], "transformers");
    let sound = sound(30);
    assert_eq!(mel(&sound).dim(1).unwrap(), 4500);
    // The port takes the filters of 128 bins.
    let filters = vec![0.01; 128 * 201];
    let chunks = voxtral::audio::extract_features(&sound, &filters, &Device::Cpu).unwrap();
    assert_eq!(chunks.dims(), [2, 128, 3000]);
    // Its end is not silence, which is below zero after the scaling, but zeros.
    let end = chunks.narrow(0, 1, 1).unwrap().narrow(2, 1500, 1500).unwrap();
    assert!(values(&end).iter().all(|value| *value == 0.0));
}
