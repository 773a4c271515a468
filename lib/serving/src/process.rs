//! What the process uses of the machine, read from `/proc` at each scrape, under the names that Prometheus' client
//! libraries share ("Writing client libraries", process metrics); and the version of the program.

use std::fmt;

use procfs::process::Process;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Process metrics and build information.
#[derive(Debug)]
pub struct ProcessMetrics;

/// One reading.
struct Reading {
    cpu_seconds: f64,
    resident_bytes: u64,
    threads: i64,
    open_files: Option<u64>,
}

impl ProcessMetrics {
    /// Registers the process metrics, and `version` as an info metric under `prefix`.
    pub fn register(registry: &mut Registry, prefix: &str, version: &'static str) {
        registry.register_collector(Box::new(Self));
        let build = Info::new([("version", version)]);
        registry.sub_registry_with_prefix(prefix).register("build", "The version that runs", build);
    }
}

impl Reading {
    /// `None` if `/proc` can't be read: then there are no samples, instead of wrong ones.
    fn take() -> Option<Self> {
        let process = Process::myself().ok()?;
        let stat = process.stat().ok()?;
        #[expect(clippy::cast_precision_loss, reason = "seconds of processor time fit into 52 bits of ticks")]
        let cpu_seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        Some(Self {
            cpu_seconds,
            resident_bytes: stat.rss * procfs::page_size(),
            threads: stat.num_threads,
            open_files: process.fd_count().ok().and_then(|count| u64::try_from(count).ok()),
        })
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(reading) = Reading::take() else { return Ok(()) };
        let mut show = |name: &str, help: &str, unit: Option<&Unit>, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
        };
        let cpu = ConstCounter::new(reading.cpu_seconds);
        show("process_cpu", "User and system processor time of this process", Some(&Unit::Seconds), &cpu)?;
        let resident = ConstGauge::new(reading.resident_bytes);
        show("process_resident_memory", "Resident memory of this process", Some(&Unit::Bytes), &resident)?;
        show("process_threads", "Threads of this process", None, &ConstGauge::new(reading.threads))?;
        if let Some(open_files) = reading.open_files {
            show("process_open_fds", "Open files of this process", None, &ConstGauge::new(open_files))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn shows_this_process_and_its_version() {
        let mut registry = Registry::default();
        ProcessMetrics::register(&mut registry, "our", "1.2.3");
        let mut text = String::new();
        encode(&mut text, &registry).expect("encodes");
        assert!(text.contains("our_build_info{version=\"1.2.3\"} 1\n"), "{text}");
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse::<f64>().expect("a number")
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0, "{text}");
        assert!(value("process_threads") >= 1.0 && value("process_open_fds") >= 3.0, "{text}");
        assert!(value("process_cpu_seconds_total") >= 0.0, "{text}");
    }
}
