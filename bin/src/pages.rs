//! `sparkler completions` and `sparkler man`: made from the same definitions as the help.

use clap::CommandFactory;

use crate::{
    args::{Cli, CompletionsArgs, ManArgs},
    report::{Failure, print},
};

pub(crate) fn completions(args: &CompletionsArgs) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sparkler", &mut script);
    print(&script)?;
    Ok(0)
}

pub(crate) fn man(args: &ManArgs) -> Result<u8, Failure> {
    let mut command = Cli::command();
    command.build();
    let wanted = args.subcommand.as_deref().and_then(|name| command.find_subcommand(name));
    let page = wanted.unwrap_or(&command).clone();
    let mut roff = Vec::new();
    clap_mangen::Man::new(page).render(&mut roff).map_err(Failure::failed)?;
    print(&roff)?;
    Ok(0)
}
