//! The variants of a run, in the order of the tables.

use reference::protocol::{Attention, Dtype, Mode};

use super::EnvironmentPlan;
use crate::spec::config::{Config, Device, LoadDtype, Version};
use crate::spec::variant::{Runner, Variant};

/// One column of the run: a variant and what it needs to run.
pub(super) struct Column {
    pub(super) variant: Variant,
    pub(super) environment: Option<usize>,
    pub(super) command: Option<usize>,
    pub(super) measured: bool,
    pub(super) oracle: bool,
}

/// Every variant once: the versions, the native models, the commands, then the oracles that are not among them.
pub(super) fn columns(config: &Config, environments: &[EnvironmentPlan], auto_device: &str) -> Vec<Column> {
    let run = &config.run;
    let mut devices: Vec<String> = Vec::new();
    for device in &run.devices {
        let device = if *device == Device::Auto { auto_device.to_owned() } else { device.to_string() };
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
    let mut columns = Vec::new();
    let mut add = |runner,
                   version: &str,
                   mode,
                   attention,
                   dtypes: &[LoadDtype],
                   needs: (Option<usize>, Option<usize>)| {
        for &dtype in dtypes {
            for device in &devices {
                let variant = Variant {
                    runner,
                    version: version.to_owned(),
                    mode,
                    attention,
                    dtype: match dtype {
                        LoadDtype::Named(dtype) => dtype,
                        LoadDtype::Auto => Dtype::F32,
                    },
                    auto_dtype: dtype == LoadDtype::Auto,
                    device: device.clone(),
                    qualified: false,
                };
                columns.push(Column {
                    variant,
                    environment: needs.0,
                    command: needs.1,
                    measured: true,
                    oracle: false,
                });
            }
        }
    };
    let environment_of = |version: &Version| {
        environments.iter().position(|environment| environment.versions.contains(&version.name))
    };
    for version in &config.versions {
        for &mode in version.modes.as_ref().unwrap_or(&run.modes) {
            for &attention in version.attention.as_ref().unwrap_or(&run.attention) {
                let dtypes = version.dtypes.as_ref().unwrap_or(&run.dtypes);
                add(
                    Runner::Transformers,
                    &version.name,
                    mode,
                    Some(attention),
                    dtypes,
                    (environment_of(version), None),
                );
            }
        }
    }
    for &mode in &config.candle.modes {
        add(Runner::Candle, "candle", mode, None, &run.dtypes, (None, None));
    }
    if config.candle.upstream {
        add(Runner::CandleTransformers, "candle-transformers", Mode::Eager, None, &run.dtypes, (None, None));
    }
    for (index, command) in config.commands.iter().enumerate() {
        add(Runner::Command, &command.name, Mode::Eager, None, &run.dtypes, (None, Some(index)));
    }

    let several = columns.iter().any(|column| {
        let key = |variant: &Variant| (variant.dtype, variant.auto_dtype, variant.device.clone());
        key(&column.variant) != key(&columns[0].variant)
    });
    for column in &mut columns {
        column.variant.qualified = several;
    }
    if run.oracle {
        // Each version has its own oracle, so that a difference below a dtype's rounding is still found.
        for version in &config.versions {
            add_oracle(
                &mut columns,
                Runner::Transformers,
                &version.name,
                Some(Attention::Eager),
                (environment_of(version), None),
            );
        }
        if !config.candle.modes.is_empty() {
            add_oracle(&mut columns, Runner::Candle, "candle", None, (None, None));
        }
        for (index, command) in config.commands.iter().enumerate().filter(|(_, command)| command.float64) {
            add_oracle(&mut columns, Runner::Command, &command.name, None, (None, Some(index)));
        }
    }
    columns
}

/// Marks the variant that serves as oracle, or adds it. Its name always contains `f64`, so that the other names do not
/// change.
fn add_oracle(
    columns: &mut Vec<Column>,
    runner: Runner,
    version: &str,
    attention: Option<Attention>,
    (environment, command): (Option<usize>, Option<usize>),
) {
    let variant = Variant {
        runner,
        version: version.to_owned(),
        mode: Mode::Eager,
        attention,
        dtype: Dtype::F64,
        auto_dtype: false,
        device: "cpu".to_owned(),
        qualified: true,
    };
    match columns.iter_mut().find(|column| Variant { qualified: true, ..column.variant.clone() } == variant) {
        Some(column) => column.oracle = true,
        None => columns.push(Column { variant, environment, command, measured: false, oracle: true }),
    }
}

/// Sort key by release number; versions that are not a release sort before all releases.
pub(crate) fn release_order(version: &Version) -> Vec<u64> {
    let number = version.source.as_ref().map_or(Some(version.name.as_str()), |source| source.release());
    release_numbers(number.unwrap_or_default())
}

/// The numbers of a release's name; empty for other names, which thus sort before every release.
pub(crate) fn release_numbers(name: &str) -> Vec<u64> {
    name.split('.').map_while(|part| part.parse().ok()).collect()
}
