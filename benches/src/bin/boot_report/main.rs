//! Makes tables, charts and a page of what `boot_bench` measured; `cargo xtask bench` runs it.
//!
//! ```text
//! boot_report --out=DIR [--page=DIR] [--command=TEXT] [--fact=NAME=VALUE]... FIGURES...
//! ```

mod charts;
mod figures;
mod goals;
mod page;
mod table;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use figures::Figures;
use sparkler_benches::samples::{self, Line};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The page and its charts, by their names in a folder.
const PAGE: &str = "boot-times.md";
const CHARTS: &str = "boot-times.svg";
const HTML: &str = "boot-times.html";

fn main() -> Result<()> {
    let (mut out, mut page, mut command) = (None, None, String::from("cargo xtask bench"));
    let mut figures = Figures::default();
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("--out", folder)) => out = Some(PathBuf::from(folder)),
            Some(("--page", folder)) => page = Some(PathBuf::from(folder)),
            Some(("--command", text)) => command = text.to_owned(),
            Some(("--fact", fact)) => {
                let (name, value) = fact.split_once('=').ok_or("want --fact=NAME=VALUE")?;
                figures.add(Line::Fact(name.to_owned(), value.to_owned()));
            }
            Some((flag, _)) if flag.starts_with('-') => {
                return Err(format!("no flag {flag}").into());
            }
            _ => samples::read(argument.as_ref())?.into_iter().for_each(|line| figures.add(line)),
        }
    }
    figures.sort();
    let out = out.ok_or("--out=DIR is needed")?;
    let verdicts = goals::judge(&figures);
    print!("{}", page::text(&figures, &verdicts));

    let mut folders = vec![out.clone()];
    folders.extend(page);
    for folder in folders {
        fs::create_dir_all(&folder)?;
        charts::draw(&figures, &folder.join(CHARTS))?;
        fs::write(folder.join(PAGE), page::markdown(&figures, &verdicts, &command, CHARTS))?;
        println!("\n{}", folder.join(PAGE).display());
    }
    let charts = fs::read_to_string(out.join(CHARTS))?;
    fs::write(out.join(HTML), page::html(&figures, &verdicts, &command, &charts))?;
    println!("{}", out.join(HTML).display());
    Ok(())
}
