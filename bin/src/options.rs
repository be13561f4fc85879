//! What the texts `PLACE[,OPTION]…` of all devices have in common.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use sparkler::{MemorySize, VmBuilder};
use thiserror::Error;

/// An option has a value that it cannot have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{option}={value:?} is not possible: {right}")]
pub(crate) struct BadValue {
    pub(crate) option: &'static str,
    pub(crate) value: String,
    /// What would be right.
    pub(crate) right: String,
}

impl BadValue {
    pub(crate) fn new(option: &'static str, value: &str, right: impl ToString) -> Self {
        Self { option, value: value.to_owned(), right: right.to_string() }
    }
}

/// At single commas; two in a row stand for one that belongs to the text.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let ends = character == ',' && characters.next_if_eq(&',').is_none();
        match parts.last_mut() {
            Some(part) if !ends => part.push(character),
            _ => parts.push(String::new()),
        }
    }
    parts
}

pub(crate) fn number<T: FromStr>(option: &'static str, value: &str) -> Result<T, BadValue> {
    whole_number(value).map_err(|right| BadValue::new(option, value, right))
}

/// For flags that are a number by themselves.
pub(crate) fn whole_number<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "write a whole number that is not too large")
}

/// How many vCPUs, as far as that is a number: the machine knows which ones are possible.
pub(crate) fn vcpus(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("write a whole number from 1 to {}", VmBuilder::MAX_VCPUS))
}

/// A number of a known range.
pub(crate) fn ranged<T: FromStr + PartialOrd + Display>(
    option: &'static str,
    value: &str,
    range: RangeInclusive<T>,
) -> Result<T, BadValue> {
    let (least, most) = (range.start(), range.end());
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        BadValue::new(option, value, format!("write a whole number from {least} to {most}"))
    })
}

/// A number of bytes, which is not 0.
pub(crate) fn bytes(option: &'static str, value: &str) -> Result<u64, BadValue> {
    // A bare number is bytes here, though it is MiB as a memory size.
    let unit = if value.ends_with(|last: char| last.is_ascii_digit()) { "B" } else { "" };
    let right = "write a number of bytes, or one with K, M, G or T";
    let size: MemorySize =
        format!("{value}{unit}").parse().map_err(|_| BadValue::new(option, value, right))?;
    at_least_one(option, size.as_bytes())
}

pub(crate) fn at_least_one(option: &'static str, number: u64) -> Result<u64, BadValue> {
    let zero = BadValue::new(option, "0", "leave it out for no limit");
    if number == 0 { Err(zero) } else { Ok(number) }
}
