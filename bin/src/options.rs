//! Values like `PATH,option,option=value`.

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
