//! The parts of a check, most important first.

use std::time::Duration;

use reference::protocol::{Dtype, Mode};

/// One part of a check.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Its name.
    pub(super) name: String,
    /// Description of the part.
    pub(super) about: String,
    /// Expected duration on a machine with an H200 and 16 cores; for a shape, the time it adds to those
    /// before it, while the compilers of all run in parallel. Time that an item does not use is left to the
    /// following ones.
    pub(super) estimate: Duration,
    pub(super) work: Work,
}

#[derive(Clone, Debug)]
pub(super) enum Work {
    /// Compares every kernel with the CPU.
    Kernels,
    /// Compares every synthetic checkpoint with float64 on the CPU.
    Architectures,
    /// Times one shape.
    Speed(Shape),
}

/// A shape that is timed against torch.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Variant of the synthetic llama checkpoint.
    pub(super) checkpoint: &'static str,
    pub(super) dtype: Dtype,
    /// Tokens of the prefill.
    pub(super) length: usize,
    /// Tokens decoded after the prefill in each round.
    pub(super) decode: usize,
    /// Modes of torch that are timed.
    pub(super) modes: &'static [Mode],
    /// Target for the fused backend's time divided by the fastest torch mode's time: prefill, decode.
    pub(super) targets: [Option<f64>; 2],
}

const UNTUNED: &[Mode] = &[Mode::Eager, Mode::Compiled, Mode::ReduceOverhead];
/// Tuning all matrix products of prefill and decode took more than four minutes on an H200 with other
/// compilers running, so tuned shapes come last and run separately.
const TUNED: &[Mode] = &[Mode::ReduceOverhead, Mode::MaxAutotune];

const SMOLLM2: &str = "smollm2-135m";
const LLAMA_3B: &str = "3b";

/// All parts, in order.
pub(super) fn all() -> Vec<Item> {
    let seconds = Duration::from_secs;
    let mut items = vec![
        Item {
            name: "kernels".to_owned(),
            about: "every kernel against the CPU's arithmetic, in f32, bf16 and f16".to_owned(),
            estimate: seconds(25),
            work: Work::Kernels,
        },
        Item {
            name: "architectures".to_owned(),
            about: "every synthetic checkpoint in f32, bf16 and f16: the fused form on the GPU against float64 on the \
                    CPU, one row, padded rows, and through the KV cache"
                .to_owned(),
            estimate: seconds(45),
            work: Work::Architectures,
        },
    ];
    let shape = |checkpoint, dtype, length, decode, modes, targets| Shape {
        checkpoint,
        dtype,
        length,
        decode,
        modes,
        targets,
    };
    let shapes = [
        (130, shape(SMOLLM2, Dtype::Bf16, 128, 32, UNTUNED, [Some(0.9), Some(0.5)])),
        (25, shape(SMOLLM2, Dtype::Bf16, 512, 0, UNTUNED, [Some(0.9), None])),
        (25, shape(SMOLLM2, Dtype::Bf16, 2048, 0, UNTUNED, [Some(0.9), None])),
        (50, shape(LLAMA_3B, Dtype::Bf16, 512, 0, UNTUNED, [Some(1.0), None])),
        (25, shape(SMOLLM2, Dtype::F32, 512, 0, UNTUNED, [None, None])),
        (200, shape(SMOLLM2, Dtype::Bf16, 128, 32, TUNED, [Some(0.9), Some(0.5)])),
    ];
    items.extend(shapes.into_iter().map(|(estimate, shape)| Item {
        name: shape.name(),
        about: shape.about(),
        estimate: seconds(estimate),
        work: Work::Speed(shape),
    }));
    items
}

impl Shape {
    /// `smollm2-135m-bf16-512`; with `max-autotune`, `smollm2-135m-bf16-128-tuned`.
    fn name(&self) -> String {
        let tuned = if self.is_tuned() { "-tuned" } else { "" };
        format!("{}-{}-{}{tuned}", self.checkpoint, crate::spec::variant::dtype_name(self.dtype), self.length)
    }

    /// Whether torch tunes its matrix products (`max-autotune`), which takes minutes.
    pub(super) fn is_tuned(&self) -> bool {
        self.modes.contains(&Mode::MaxAutotune)
    }

    fn about(&self) -> String {
        let modes: Vec<&str> = self.modes.iter().map(|&mode| crate::spec::variant::mode_name(mode)).collect();
        let decode =
            if self.decode == 0 { String::new() } else { format!(" and {} decoded tokens", self.decode) };
        format!(
            "synthetic:llama:{} in {}, prefill of {} tokens{decode}: the fused backend and torch's {}",
            self.checkpoint,
            crate::spec::variant::dtype_name(self.dtype),
            self.length,
            modes.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use models::synthetic::catalogue;

    use super::*;

    #[test]
    fn correctness_comes_before_speed_and_every_shape_exists() {
        let items = all();
        assert!(matches!(items[0].work, Work::Kernels) && matches!(items[1].work, Work::Architectures));
        let mut names: Vec<&str> = items.iter().map(|item| item.name.as_str()).collect();
        for item in &items[2..] {
            let Work::Speed(shape) = &item.work else { panic!("{} is no shape", item.name) };
            let exists = |entry: &&models::synthetic::Entry| {
                entry.model_type == "llama" && entry.variant == shape.checkpoint
            };
            assert!(catalogue().iter().any(|entry| exists(&entry)), "{}", shape.checkpoint);
            // The fastest torch mode must include CUDA graphs.
            assert!(shape.modes.contains(&Mode::ReduceOverhead));
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), items.len());
    }

    #[test]
    fn the_whole_check_is_estimated_to_fit_into_ten_minutes() {
        let sum: Duration = all().iter().map(|item| item.estimate).sum();
        assert!(sum <= Duration::from_secs(crate::cli::GPU_CHECK_SECONDS - 10), "{sum:?}");
    }
}
