//! `/metrics`: the samples of a registry, as an HTTP answer, in the format that the client takes.

use axum::{
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use prometheus_client::{encoding::text::encode, registry::Registry};

/// The media type of `prometheus-client`'s text encoding (`OpenMetrics` specification 1.0.0, "Text format").
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of Prometheus' own text format, the only one that older agents take.
pub const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of a registry, read now: `OpenMetrics`, unless the client names formats and that one is not among them.
pub fn metrics_page(registry: &Registry, request: &HeaderMap) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) if takes_openmetrics(request) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Ok(()) => ([(CONTENT_TYPE, PROMETHEUS_TEXT)], prometheus_text(&text)).into_response(),
        Err(error) => {
            let text = format!("can not encode the metrics: {error}");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

/// Whether the client takes `OpenMetrics`: it names no format, that one, or anything, and does not exclude it by `q=0`.
fn takes_openmetrics(request: &HeaderMap) -> bool {
    let mut named = request.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    if named.peek().is_none() {
        return true;
    }
    named.flat_map(|value| value.split(',')).any(|choice| {
        let mut parts = choice.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let is_excluded = parts.any(|part| {
            part.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok()).is_some_and(|it| it <= 0.0)
        });
        ["application/openmetrics-text", "application/*", "*/*"].contains(&kind.as_str()) && !is_excluded
    })
}

/// `OpenMetrics` as Prometheus' text format: there a counter is named as its samples are, and there are neither units nor a
/// mark of the end.
fn prometheus_text(openmetrics: &str) -> String {
    let counters: Vec<&str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|start| {
            let (name, rest) = line.strip_prefix(start)?.split_once(' ')?;
            Some((start, name, rest))
        });
        match described {
            Some((start, name, "unknown")) if start == "# TYPE " => text.extend([start, name, " untyped"]),
            Some((start, name, rest)) if counters.contains(&name) => {
                text.extend([start, name, "_total ", rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram};
    use rstest::rstest;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        let counters = Family::<Vec<(String, String)>, Counter>::default();
        counters.get_or_create(&vec![("of".to_owned(), "x # EOF".to_owned())]).inc();
        registry.register("calls", "Calls", counters);
        registry.register("open", "Open", Gauge::<i64>::default());
        registry.register("took_seconds", "Time", Histogram::new([1.0]));
        registry
    }

    #[rstest]
    #[case::nothing_named(&[], true)]
    #[case::prometheus(&["application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"], true)]
    #[case::curl(&["*/*"], true)]
    #[case::old_agent(&["text/plain;version=0.0.4"], false)]
    #[case::old_agent_in_two_headers(&["text/plain;version=0.0.4", "text/html"], false)]
    #[case::protobuf(&["application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily, text/plain"], false)]
    #[case::excluded(&["application/openmetrics-text;q=0, text/plain"], false)]
    #[case::in_capitals(&["text/plain", "Application/OpenMetrics-Text"], true)]
    fn the_client_gets_a_format_that_it_takes(#[case] accept: &[&'static str], #[case] openmetrics: bool) {
        let mut request = HeaderMap::new();
        for value in accept {
            request.append(ACCEPT, value.parse().expect("is a header"));
        }
        let wanted = if openmetrics { OPENMETRICS } else { PROMETHEUS_TEXT };
        assert_eq!(metrics_page(&registry(), &request).headers()[CONTENT_TYPE], wanted);
    }

    #[test]
    fn counters_have_the_names_of_their_samples_in_the_old_format() {
        let mut text = String::new();
        encode(&mut text, &registry()).expect("is encoded");
        let wanted = "# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total{of=\"x # EOF\"} 1\n\
            # HELP open Open.\n# TYPE open gauge\nopen 0\n\
            # HELP took_seconds Time.\n# TYPE took_seconds histogram\ntook_seconds_sum 0.0\ntook_seconds_count 0\n\
            took_seconds_bucket{le=\"1.0\"} 0\ntook_seconds_bucket{le=\"+Inf\"} 0\n";
        assert_eq!(prometheus_text(&text), wanted);
    }
}
