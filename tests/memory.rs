//! A test that is the only one in its process, so that the process's peak memory is the comparison's.

use std::io::Write;

use compare::logits::Logits;
use compare::matrix::{Entry, Options, matrix};
use compare::{Dtype, Positions};

/// 1.2 GB of logits, in sparse files, which take neither disk space nor time to write.
#[test]
fn twelve_variants_of_512_by_49152_are_compared_within_a_gibibyte() {
    let folder = tempfile::tempdir().unwrap();
    let (seq, vocab) = (512, 49152);
    let entries: Vec<Entry> = (0..12)
        .map(|index| {
            let path = folder.path().join(format!("{index}.safetensors"));
            let bytes = seq * vocab * 4;
            let header = format!(
                r#"{{"logits":{{"dtype":"F32","shape":[1,{seq},{vocab}],"data_offsets":[0,{bytes}]}}}}"#
            );
            let mut file = std::fs::File::create(&path).unwrap();
            file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
            file.write_all(header.as_bytes()).unwrap();
            // One logit differs per file, so that no two files are identical.
            file.write_all(&(index as f32).to_le_bytes()).unwrap();
            file.set_len((8 + header.len() + bytes) as u64).unwrap();
            let logits = Logits::open(&path, Positions::All).map_err(|error| error.to_string());
            Entry { name: index.to_string(), dtype: Dtype::F32, logits }
        })
        .collect();
    let measured = matrix(&entries, None, &Options::default()).unwrap();
    let l2 = measured.compared(2, 5).unwrap().l2;
    assert!((l2 - 3.0).abs() < 1e-12, "{l2}");
    if !cfg!(target_os = "linux") {
        return;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let mib = peak.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024;
    assert!(mib < 1024, "peak resident set {mib} MiB");
}
