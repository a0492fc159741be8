use super::super::{AlignedBuf, ArenaPlan};
use super::most;
use half::bf16;

#[test]
fn buffers_are_zeroed_and_aligned() {
    for len in [0, 1, 100, most(1 << 20, 3000)] {
        let buffer = AlignedBuf::<f32>::zeroed(len);
        assert!(buffer.iter().all(|x| x.to_bits() == 0) && buffer.len() == len);
        assert!(len == 0 || (buffer.as_ptr() as usize).is_multiple_of(64), "{len} floats");
    }
}

#[test]
fn slots_keep_values_and_share_no_cache_line() {
    let mut plan = ArenaPlan::default();
    let (a, b, c) = (plan.slot::<f32>(17), plan.slot::<bf16>(5), plan.slot::<f32>(16));
    assert_eq!(plan.bytes(), 128 + 64 + 64);
    let mut arena = plan.build();
    let [x, y] = arena.get_mut([a, c]);
    x.fill(1.0);
    y.fill(2.0);
    arena.get_mut([b])[0].fill(bf16::ONE);
    assert!(arena.get(a).iter().all(|v| v.to_bits() == 1.0_f32.to_bits()));
    assert!(arena.get(b).iter().all(|v| *v == bf16::ONE));
    assert!(arena.get(c.first(16)).iter().all(|v| v.to_bits() == 2.0_f32.to_bits()));
}

#[test]
#[should_panic(expected = "overlap")]
fn getting_one_slot_twice_panics() {
    let mut plan = ArenaPlan::default();
    let a = plan.slot::<f32>(17);
    let _ = plan.build().get_mut([a, a.first(3)]);
}
