"""The verbs, and what each is for."""

PURPOSES = {
    "fit": "train every run of an experiment, then gather their recordings",
    "plan": "print what fit would do, and do nothing",
    "init": "copy a config that comes with flannel-pl, to be changed",
    "prepare": "make tokenizer, corpus and token masks from text",
    "status": "show how far an experiment is, from any terminal or host",
    "gather": "join the finished recordings of an experiment (again)",
    "info": "show what is in a recording",
    "verify": "check every row of a recording against its checksum",
    "report": "show what a recording holds: metrics, epochs, figures, as a page",
    "compare": "find where two recordings part, to the bit",
    "completion": "print a script with which a shell completes verbs and keys",
}
