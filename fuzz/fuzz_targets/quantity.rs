//! Quantities. What is accepted has the form that Kubernetes writes, and the number of bytes that it says, rounded up.
#![no_main]

use fuzz::text;
use infra::{Quantity, parse_quantity};
use libfuzzer_sys::fuzz_target;

/// Suffixes and what they stand for.
const SCALES: [(&str, f64); 16] = [
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("", 1.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
];

fuzz_target!(|input: &[u8]| {
    let Some(text) = text(input) else { return };
    if let Some(bytes) = parse_quantity(text) {
        let said =
            said(text.trim()).unwrap_or_else(|| panic!("{text:?} is no quantity, and was read as {bytes}"));
        #[allow(clippy::cast_precision_loss, reason = "compared within a part of a million")]
        let difference = (bytes as f64 - said).abs();
        assert!(difference <= 1.0 + said * 1e-6, "{text:?} is {said}, and was read as {bytes}");
        assert_eq!(parse_quantity(&bytes.to_string()), Some(bytes));
    }
    if let Ok(quantity) = serde_json::from_str::<Quantity>(text) {
        let printed = quantity.as_written().to_string();
        let again: Quantity = serde_json::from_str(&printed).expect("JSON is read again");
        assert_eq!(again.bytes(), quantity.bytes());
    }
});

/// `<sign><digits>[.<digits>]<suffix>` (k8s.io/apimachinery, `resource.Quantity`), read without any code of ours.
fn said(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    if number.matches('.').count() > 1 || !number.contains(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let number: f64 = format!("0{number}0")
        .replace("..", ".")
        .parse()
        .ok()
        .filter(|_| number.contains('.'))
        .or_else(|| number.parse().ok())?;
    if let Some((_, scale)) = SCALES.iter().find(|(known, _)| *known == suffix) {
        return Some(number * scale);
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| exponent.parse::<i32>().ok().map(|exponent| number * 10_f64.powi(exponent)))?
}
