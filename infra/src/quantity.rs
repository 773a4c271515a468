//! Converts Kubernetes quantities to whole bytes (`resource.Quantity`, rounded up as its `Value()` does).

use serde::Deserialize;
use serde_json::Value;

/// A quantity as the API wrote it, which is what a JSON patch has to test: a text, or a number where a client wrote one
/// into a custom resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Quantity(Value);

impl Quantity {
    /// Its bytes; `None` when it is not a quantity, is negative, or does not fit 64 bits.
    pub fn bytes(&self) -> Option<u64> {
        match &self.0 {
            Value::String(text) => parse_quantity(text),
            Value::Number(number) => number.as_u64(),
            _ => None,
        }
    }

    /// The value as written.
    pub fn as_written(&self) -> &Value {
        &self.0
    }
}

/// Bytes of a quantity such as `1Gi`, `1073741824`, `1.5G`, `1e9` or `128974848000m`; `None` when it is not a quantity,
/// is negative, or does not fit 64 bits.
pub fn parse_quantity(text: &str) -> Option<u64> {
    let text = text.trim();
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let number_end = unsigned.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(number_end);
    let (multiplier, divisor) = scale(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let fraction_scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let scaled = digits.checked_mul(multiplier)?;
    u64::try_from(scaled.div_ceil(fraction_scale.checked_mul(divisor)?)).ok()
}

/// Multiplier and divisor of a suffix.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let binary = |power: u32| Some((1_u128 << (10 * power), 1));
    let decimal = |power: u32| Some((10_u128.pow(power), 1));
    match suffix {
        "" => Some((1, 1)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            // `parse` takes a sign, so a second one would pass.
            let power = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
            let power = 10_u128.checked_pow(power)?;
            Some(if exponent.starts_with('-') { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("1073741824", Some(1 << 30))]
    #[case("1Gi", Some(1 << 30))]
    #[case("1.5Gi", Some(3 << 29))]
    #[case("1G", Some(1_000_000_000))]
    #[case("1e9", Some(1_000_000_000))]
    #[case("12E2", Some(1200))]
    #[case("1500m", Some(2))]
    #[case("0", Some(0))]
    #[case("1E", Some(1_000_000_000_000_000_000))]
    #[case("-1", None)]
    #[case("", None)]
    #[case("Gi", None)]
    #[case("1 Gi", None)]
    #[case("1KiB", None)]
    #[case("1.2.3", None)]
    #[case("999999999999Ei", None)]
    #[case("+1Ki", Some(1024))]
    #[case("1e+3", Some(1000))]
    #[case("++1", None)]
    #[case("1.+5", None)]
    #[case(".+5", None)]
    #[case("1e++3", None)]
    #[case("1e-+3", None)]
    #[case("1e", None)]
    fn quantities(#[case] text: &str, #[case] bytes: Option<u64>) {
        assert_eq!(parse_quantity(text), bytes);
    }

    proptest! {
        #[test]
        fn plain_bytes_are_themselves(bytes: u64) {
            prop_assert_eq!(parse_quantity(&bytes.to_string()), Some(bytes));
        }

        #[test]
        fn any_text_is_answered_without_a_panic(text in ".{0,40}") {
            let _: Option<u64> = parse_quantity(&text);
        }
    }
}
