//! Quantities of Kubernetes in bytes.

use anyhow::{Context, Result};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity in bytes, rounded up.
///
/// # Errors
/// When it is no quantity, or is negative.
pub fn bytes(quantity: &Quantity) -> Result<u64> {
    const SUFFIXES: [(&str, u64); 11] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("", 1),
    ];
    let text = quantity.0.as_str();
    let (number, unit) = SUFFIXES
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .with_context(|| format!("{text} is no quantity"))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = u32::try_from(fraction.len()).ok().and_then(|digits| 10_u128.checked_pow(digits));
    let digits: u128 =
        format!("{whole}{fraction}").parse().with_context(|| format!("{text} is no quantity"))?;
    let scaled = scale.and_then(|scale| Some((digits.checked_mul(u128::from(unit))?).div_ceil(scale)));
    scaled.and_then(|bytes| u64::try_from(bytes).ok()).with_context(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_in_bytes() {
        let of = |text: &str| bytes(&Quantity(text.into())).ok();
        assert_eq!(of("1138166334"), Some(1_138_166_334));
        assert_eq!(of("1Gi"), Some(1 << 30));
        assert_eq!(of("1.5Mi"), Some(3 << 19));
        assert_eq!(of("0.1k"), Some(100));
        assert_eq!(of("0.0001k"), Some(1), "rounded up");
        assert_eq!(of("2G"), Some(2_000_000_000));
        for wrong in ["", "-1", "1e3x", "Gi", "99999999999P"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
