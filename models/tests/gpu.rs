//! The fused form on a GPU, which is the emulated one: every synthetic checkpoint in every dtype gives what the CPU gives
//! in F64, whatever is padding, cached, recorded or looked at.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use candle_core::{DType, Device, IndexOp, Tensor};
use models::cuda::{Emulator, Order};
use models::synthetic::{catalogue, write};
use models::{Form, Inputs, Loaded, Options, load, load_on_gpu};

#[test]
fn smoke() {
    let only = std::env::var("ONLY").unwrap_or_default();
    for entry in catalogue().iter().filter(|entry| !entry.bench) {
        let name = format!("{}:{}", entry.model_type, entry.variant);
        if !name.contains(&only) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        write(entry.model_type, entry.variant, 0, folder.path()).unwrap();
        let options = Options { dtype: DType::F64, device: Device::Cpu, form: Form::Eager };
        let exact = load(folder.path(), &options).unwrap().forward(&inputs()).unwrap();
        let t = std::time::Instant::now();
        let mut gpu = load_on_gpu(folder.path(), DType::F32, Emulator::start(Order::Forward)).unwrap();
        let l = t.elapsed();
        for _ in 0..3 {
            match gpu.forward(&inputs()) {
                Ok(ours) => {
                    let ours = ours.to_dtype(DType::F64).unwrap();
                    let norm = |xs: &Tensor| xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
                    println!("{name} {:?} {:e} {l:?} {:?}", ours.dims(), norm(&(&ours - &exact).unwrap()) / norm(&exact), t.elapsed());
                }
                Err(error) => println!("{name} {error}"),
            }
        }
        println!("{:?}", gpu.pass_counts());
    }
}

fn inputs() -> Inputs {
    let ids: Vec<u32> = (0..24).map(|i| (i * 37 % 280) as u32).collect();
    Inputs::new(Tensor::from_vec(ids, (2, 12), &Device::Cpu).unwrap())
}
