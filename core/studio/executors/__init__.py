"""Where jobs are computed: `local` in threads of this process. All follow `core.studio.scheduler.Executor`."""
