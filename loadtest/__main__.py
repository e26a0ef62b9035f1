from loadtest.command import main

raise SystemExit(main())
